"""All runs as a table, and one run on a page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from scnf.analysis.overview import describe, format_table, list_runs
from scnf.errors import UserError
from scnf.runs import Run


def make(root: Path, name: str, config: str = "", summary: Any = None, metrics: str = "") -> Run:
    run = Run.create(root, name)
    for file, text in (("config.yaml", config), ("metrics.csv", metrics)):
        if text:
            run.write_text(file, text)
    if summary is not None:
        run.write_json("summary.json", summary)
    return run


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    def config(recipe: str, data: str, labels: object) -> str:
        settings = {"recipe": recipe}, {"name": data, "num_labels": labels}
        return json.dumps({"model": settings[0], "data": settings[1], "train": {"epochs": 20}, "seed": 3})

    root = tmp_path / "logs"
    done = {"status": "finished", "epochs": 12.3684, "minutes": 3.21, "validation": {"accuracy": 0.5}}
    make(root, "a", config("scnf-fast", "mnist", 100), done | {"test": {"accuracy": 0.93421, "bits_per_dim": 1.25}})
    make(root, "b", config("m2", "mnist", "all"), done | {"test.accuracy": 0.95})
    rows = "epoch,minutes,validation.accuracy,validation.bits_per_dim\n1,0.5,0.8,2\n2,1.26,0.875,1.5\n3,1.5,,\n"
    make(root, "c", config("scnf-fast", "digits", 10), None, rows)
    make(root, "d", config("scnf-fast", "digits", 10))
    damaged = make(root, "damaged", "a: [b: {", None)
    (damaged.path / "summary.json").write_bytes(b'{"status": ')
    (damaged.path / "metrics.csv").write_bytes(b"\xff")
    odd = make(root, "odd", "- model\n- 3\n", {"test": {"accuracy": "high"}, "minutes": None, "epochs": float("nan")})
    (odd.path / "metrics.csv").mkdir()
    return root


def test_runs_table_shows_settings_results_and_status(logs: Path) -> None:
    assert format_table(list_runs(logs)).splitlines() == [
        "    id  name     recipe     data    labels   epochs  accuracy   bits_per_dim   minutes  status",
        "000001  a        scnf-fast  mnist      100  12.3684   93.42 %          1.250       3.2  finished",
        "000002  b        m2         mnist      all  12.3684   95.00 %              -       3.2  finished",
        "000003  c        scnf-fast  digits      10     3/20   87.50 %*         1.500*      1.5  unfinished",
        "000004  d        scnf-fast  digits      10     0/20         -              -         -  unfinished",
        "000005  damaged  -          -            -        -         -              -         -  unfinished",
        "000006  odd      -          -            -        -         -              -         -  unfinished",
        "* validation, one draw of the noise, not finished",
    ]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"sort": "accuracy"}, ["c", "a", "b", "d", "damaged", "odd"]),
        ({"sort": "accuracy", "reverse": True}, ["b", "a", "c", "d", "damaged", "odd"]),
        ({"sort": "labels"}, ["c", "d", "a", "b", "damaged", "odd"]),
        ({"sort": "name", "reverse": True}, ["odd", "damaged", "d", "c", "b", "a"]),
        ({"where": ["recipe=scnf-fast"]}, ["a", "c", "d"]),
        ({"where": ["recipe = scnf-fast", "data==mnist"]}, ["a"]),
        ({"where": ["accuracy>0.9"]}, ["a", "b"]),
        ({"where": ["accuracy>=95%"]}, ["b"]),
        ({"where": ["accuracy<94%"]}, ["a", "c"]),
        ({"where": ["labels=100"]}, ["a"]),
        ({"where": ["labels>10"]}, ["a"]),
        ({"where": ["id=000002"]}, ["b"]),
        ({"where": ["status!=unfinished"]}, ["a", "b"]),
        ({"where": ["recipe=-"]}, ["damaged", "odd"]),
    ],
)
def test_runs_table_sorts_and_filters(logs: Path, arguments: dict[str, Any], names: list[str]) -> None:
    lines = format_table(list_runs(logs), **arguments).splitlines()
    assert [line.split()[1] for line in lines[1:] if line[0] != "*"] == names
    assert any(line[0] == "*" for line in lines) == ("c" in names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sort": "acuracy"}, "there is no column 'acuracy'. Did you mean 'accuracy'?"),
        ({"where": ["recipes=m2"]}, "Did you mean 'recipe'?"),
        ({"where": ["zzz=1"]}, "there is no column 'zzz'. The columns are id, name,"),
        ({"where": ["accuracy"]}, "cannot read the condition 'accuracy'. Write for example"),
        ({"where": ["accuracy>0,9"]}, "'0,9' is not a number"),
    ],
)
def test_runs_table_reports_invalid_columns_and_conditions_as_user_errors(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        format_table([], **arguments)


def test_runs_table_without_rows_names_the_conditions(logs: Path) -> None:
    assert format_table([]) == "no runs"
    assert format_table(list_runs(logs), where=["data=svhn", "id>2"]) == "no runs where data=svhn and id>2"


def test_describe_shows_status_settings_results_and_files_of_a_run(logs: Path) -> None:
    text = describe(Run.find(logs, "1"))
    assert text.startswith(str(logs / "000001-"))
    for line in ("status: finished", "recipe +scnf-fast", "seed +3", r"test.accuracy +0.93421", r"config.yaml +\d+ B"):
        assert re.search(rf"^ *{line}$", text, re.MULTILINE), line
    assert re.search(r"last metrics\n  epoch +3\n  minutes +1.5\n", describe(Run.find(logs, "3")))
    for ref in ("damaged", "odd"):
        assert "status: unfinished" in describe(Run.find(logs, next(logs.glob(f"*-{ref}")).name))
