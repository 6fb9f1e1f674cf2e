"""Parts from outside of the package: the examples of the documentation, and whose code a command runs."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scnf import parts
from scnf.commands import COMMANDS
from scnf.data.sources import DATASETS, Dataset, check_dataset
from scnf.errors import InvalidArgument
from scnf.nn import IMAGE_NETWORKS, VECTOR_NETWORKS, register_network
from scnf.recipes import RECIPES, ScnfFast, register_recipe
from scnf.registry import REGISTRATIONS
from scnf.runs import Run
from scnf.transforms import LINEAR

PAGE = (Path(__file__).parents[1] / "docs/extend.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(
    r"^<!-- file: (\S+) -->\n```python\n(.*?)^```\n\n<!-- run -->\n```bash\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE
)
TABLES: list[dict[str, Any]] = [RECIPES, DATASETS, IMAGE_NETWORKS, VECTOR_NETWORKS, LINEAR, COMMANDS]  # type: ignore[list-item]
TINY = "--channels 8 --steps 1 --detail_channels 8 --conditional_hidden 8 --max_steps 3 --epochs 1"
PART = """
from pathlib import Path
from dataclasses import dataclass
from scnf import register_recipe
from scnf.recipes import ScnfFast

with open(r"TRACE", "a") as trace:
    trace.write("x")

@register_recipe("own")
@dataclass(frozen=True)
class Own(ScnfFast):
    '''A recipe of somebody's own.'''

    channels: int = 8
"""


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Calling it forgets what was imported and registered, as a new process would know nothing of it."""
    before = [dict(table) for table in TABLES]

    def fresh() -> None:
        monkeypatch.setattr(parts, "_files", {})
        monkeypatch.setattr(parts, "_session", [])
        monkeypatch.setattr(parts, "_trusts_all", False)
        REGISTRATIONS.clear()
        for table, kept in zip(TABLES, before, strict=True):
            table.clear()
            table.update(kept)

    fresh()
    yield fresh
    fresh()


@pytest.fixture
def own(
    scnf: Any, process: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, bool]]:
    """`scnf WORDS` as a new process of the user `user`: its outcome, and whether my_parts.py was run."""
    trace = tmp_path / "trace"
    (tmp_path / "my_parts.py").write_text(PART.replace("TRACE", str(trace)))

    def call(*words: str, user: str = "me") -> tuple[Any, bool]:
        process()
        trace.unlink(missing_ok=True)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / user))
        outcome = scnf(*words)
        return outcome, trace.exists()

    return call


@pytest.fixture
def trained(own: Callable[..., tuple[Any, bool]], last_run: Callable[[], Run]) -> Run:
    outcome, ran = own("train --config digits.yaml --recipe own --import my_parts.py", TINY)
    assert outcome.code == 0 and ran, outcome.err
    return last_run()


# --- the examples


def test_extend_page_has_four_short_examples() -> None:
    assert [name for name, _, _ in EXAMPLES] == ["my_transform.py", "my_recipe.py", "my_data.py", "my_command.py"]
    assert all(len(code.splitlines()) < 30 for _, code, _ in EXAMPLES)


@pytest.mark.parametrize(("name", "code", "commands"), EXAMPLES, ids=[name for name, _, _ in EXAMPLES])
def test_extend_page_example_runs(name: str, code: str, commands: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(code)
    for line in commands.splitlines():
        words = [sys.executable, "-m", *line.split()]
        environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, f"{line}: {done.stderr}"


def test_practitioner_page_example_trains_on_arrays(tmp_path: Path) -> None:
    import numpy as np

    page = (Path(__file__).parents[1] / "docs/guides/practitioner.md").read_text(encoding="utf-8")
    code = re.search(r"^<!-- file: my_data.py -->\n```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    command = re.search(r"^scnf (train --config .*? --import .*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert code and command
    (tmp_path / "my_data.py").write_text(code[1])
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    np.save(tmp_path / "photos/images.npy", random.integers(256, size=(800, 8, 8, 3), dtype=np.uint8))
    np.save(tmp_path / "photos/labels.npy", np.arange(800) % 4)
    words = [*command[1].replace("\\\n", " ").split(), *TINY.replace("--conditional_hidden 8 ", "").split()]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    done = subprocess.run(
        [sys.executable, "-m", "scnf", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0 and "on mine, 80 labelled of 220 training rows" in done.stdout, done.stderr


# --- whose code is run


def test_run_keeps_its_parts_and_its_author_needs_no_trust_option(own: Any, trained: Run) -> None:
    kept, sums = sorted((trained.path / "parts").iterdir())
    assert kept.name == "01-my_parts.py" and kept.read_bytes() == Path("my_parts.py").read_bytes()
    subprocess.run(["sha256sum", "--check", sums.name], cwd=sums.parent, check=True, capture_output=True)
    Path("my_parts.py").unlink()
    for words in ("evaluate last", "sample last --num 2", "compare last", "train --resume last --max_steps 4"):
        outcome, ran = own(words)
        assert (outcome.code, ran) == (0, True), outcome.err
    assert "own" in own("runs")[0].out


@pytest.mark.parametrize(
    "words",
    [
        *("evaluate last", "sample last", "compare last", "train --resume last --max_steps 4"),
        *(f"evaluate {name}" for name in ("{run}/model.safetensors", "{run}/checkpoints/best.safetensors")),
        "train --config digits.yaml --recipe scnf-fast --pretrained last --max_steps 1",
        "train --config digits.yaml --recipe m1-m2 --m1 last --max_steps 1",
    ],
)
def test_run_of_another_user_is_refused_until_its_parts_are_trusted(own: Any, trained: Run, words: str) -> None:
    words = words.format(run=trained.path)
    outcome, ran = own(words, user="you")
    assert (outcome.code, ran) == (2, False) and "Traceback" not in outcome.err
    assert re.search(r"needs code of its own.*01-my_parts.py \(sha256 [0-9a-f]{12}.*--trust-parts, or", outcome.err)
    for way in ("--trust-parts", "--import my_parts.py"):
        outcome, ran = own(f"{words} {way}", user="you")
        assert ran, outcome.err
        assert outcome.code == (0 if "train --config" not in words else 2), outcome.err
    assert own(words, user="you")[1] is False, "trust is for one command"


def test_parts_changed_in_the_run_are_refused(own: Any, trained: Run) -> None:
    kept = trained.path / "parts" / "01-my_parts.py"
    kept.write_text(kept.read_text() + "\n")
    for words in ("evaluate last", "evaluate last --trust-parts", "evaluate last --import my_parts.py"):
        outcome, _ = own(words)
        assert outcome.code == 2 and "is not what the run was made with" in outcome.err


def test_compare_reads_each_run_with_its_own_version_of_a_part(own: Any, trained: Run) -> None:
    path = Path("my_parts.py")
    path.write_text(path.read_text().replace("channels: int = 8", "channels: int = 4"))
    outcome, _ = own("train --config digits.yaml --recipe own --import my_parts.py --steps 1 --max_steps 1")
    assert outcome.code == 0, outcome.err
    for words in ("compare 1 2", "compare 2 1", "evaluate 1", "evaluate 1 --import my_parts.py", "evaluate 2"):
        outcome, _ = own(words)
        assert outcome.code == 0, outcome.err


def test_config_of_a_run_brings_its_parts_along(own: Any, trained: Run, last_run: Any) -> None:
    words = f"train --config {trained.path}/config.yaml --max_steps 1"
    outcome, ran = own(words, user="you")
    assert (outcome.code, ran) == (2, False) and "--trust-parts" in outcome.err
    assert own(words)[0].code == 0 and (last_run().path / "parts/01-my_parts.py").is_file()
    shutil.rmtree(trained.path)
    assert own("evaluate last")[0].code == 0


@pytest.mark.parametrize("extra", ["helper/__init__.py", "other.py", "notes.txt"])
def test_parts_that_the_run_does_not_list_are_refused(own: Any, trained: Run, extra: str) -> None:
    path = trained.path / "parts" / extra
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    for words in ("evaluate last", "evaluate last --trust-parts"):
        outcome, ran = own(words)
        assert (outcome.code, ran) == (2, False) and "is not in the list of the parts of the run" in outcome.err


@pytest.mark.parametrize("damage", ["gone", "no list", "no text"])
def test_damaged_parts_are_refused_and_not_run(own: Any, trained: Run, damage: str) -> None:
    file, sums = sorted((trained.path / "parts").iterdir())
    if damage == "gone":
        file.unlink()
    elif damage == "no list":
        sums.unlink()
    else:
        sums.write_bytes(b"\xff\xfe")
    outcome, ran = own("evaluate last --trust-parts")
    assert (outcome.code, ran) == (2, False)
    assert ("is missing" if damage == "gone" else "the list of the parts of the run") in outcome.err


def test_relative_state_directory_is_ignored(own: Any, trained: Run, tmp_path: Path) -> None:
    digest = (trained.path / "parts" / "SHA256SUMS").read_text().split()[0]
    marker = tmp_path / "rel" / "scnf" / "parts" / digest
    marker.parent.mkdir(parents=True)
    marker.touch()
    done = subprocess.run(
        [sys.executable, "-m", "scnf", "evaluate", str(trained.path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_STATE_HOME": "rel", "HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 2 and "--trust-parts" in done.stderr


def test_parts_of_pretrained_weights_are_kept_in_the_new_run(own: Any, trained: Run, last_run: Any) -> None:
    outcome, ran = own("train --config digits.yaml --recipe own --pretrained 1 --import my_parts.py", TINY)
    assert outcome.code == 0 and ran, outcome.err
    shutil.rmtree(trained.path)
    outcome, ran = own("evaluate last")
    assert (outcome.code, ran) == (0, True) and (last_run().path / "parts" / "01-my_parts.py").is_file()


# --- files that are no parts


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = ", r"cannot import the parts my_parts.py: .*SyntaxError"),
        ("\n\nraise RuntimeError('no')", "RuntimeError: no .*my_parts.py, line 3"),
        ("import sys; sys.exit(0)", "SystemExit: 0 .*line 1"),
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        (
            "from scnf import register_transform as r\nr('plu')(1)",
            "'plu' already names a transform of scnf.*line 2",
        ),
        ("from scnf import register_command\nregister_command('train')(1)", "'train' already names a command of scnf"),
        ("from scnf import register_network\nregister_network('a b')(1)", "name must be letters, digits, "),
        ("raise BaseException('z')", "BaseException: z"),
        (
            "class E(Exception):\n  def __str__(self):\n    raise ValueError\nraise E",
            "E: its text cannot be made",
        ),
    ],
)
def test_failing_part_is_refused_with_its_error(own: Any, code: str, message: str) -> None:
    Path("my_parts.py").write_text(code)
    outcome, _ = own("recipes --import my_parts.py")
    assert outcome.code == 2 and re.search(message, outcome.err), outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("recipes --import", "--import needs a value: a Python file"),
        ("recipes --import --trust-parts", "--import needs a value"),
        ("recipes --import not-there.py", "cannot read the parts not-there.py: No such file"),
        ("recipes --import .", "a Python file, whose name ends in .py, not ."),
        ("recipes nothing", "recipe must be one of .*; not 'nothing'"),
        ("train --config digits.yaml --recipe own", "must be one of .*; not 'own'"),
    ],
)
def test_unknown_recipe_and_import_without_a_file_are_refused(own: Any, words: str, message: str) -> None:
    outcome, _ = own(words)
    assert outcome.code == 2 and re.search(message, outcome.err), outcome.err


def test_registration_refuses_a_registered_class_and_unknown_inputs(process: Callable[[], None]) -> None:
    with pytest.raises(InvalidArgument, match="recipe is scnf-fast already: register a class under it"):
        register_recipe("again")(ScnfFast)
    with pytest.raises(InvalidArgument, match="inputs must be one of images, vectors; not 'points'"):
        register_network("own", "points")  # type: ignore[arg-type]
    register_network("own", "vectors")(VECTOR_NETWORKS["mlp"])
    assert "own" in VECTOR_NETWORKS and "own" not in IMAGE_NETWORKS


def test_check_dataset_refuses_invalid_datasets(process: Callable[[], None]) -> None:
    import torch

    x, y = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    points = torch.rand(4, 2)
    check_dataset(Dataset("own", x, y, x, y, 2, 256))
    for bad, message in (
        (Dataset("own", x, y, x, y, 2, "256"), "levels must be a whole number"),  # type: ignore[arg-type]
        (Dataset("own", points.double(), y, points, y, 2, None), "must be float32, not torch.float64"),
        (Dataset("own", points.clone().requires_grad_(), y, points, y, 2, None), "must not require gradients"),
        (Dataset("own", x.float(), y, x, y, 2, 256), "train_x must hold 256 grey levels as whole numbers"),
        (Dataset("own", x, y, x, y + 1, 2, 256), "test_y must hold labels of 0 to 1, not numbers from 1 to 2"),
        (Dataset("own", x, y[:3], x, y, 2, 256), "train_y must hold one label for each of 4 rows, not 3"),
        (Dataset("own", x, y, x[..., :1], y, 2, 256), "test_x must be shaped as train_x"),
        ((x, y), "dataset must be a Dataset, not tuple"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            check_dataset(bad)  # type: ignore[arg-type]


# --- recipes that could not be set or kept

RECIPE = """
import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from scnf import register_recipe
from scnf.arguments import Range, Condition
from scnf.recipes import ScnfFast

@register_recipe("own")
@dataclass(frozen=True)
class Own(ScnfFast):
    '''Somebody's own.'''
    FIELD
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("extra: list[int] = field(default_factory=list)", "extra must be of a type that a setting can have"),
        ("extra: tuple = (1,)", "extra must be of a type"),
        ("extra: complex = 1j", "extra must be of a type"),
        ("extra: Literal[1, 2] = 1", "extra must be of a type"),
        ("extra: int = field(default=3, init=False)", "extra must be an argument with a default"),
        ("extra: int = field(kw_only=True)", "extra must be an argument with a default"),
        ("extra: str = ''", "extra must not be empty by default"),
        ("extra: Annotated[int, Range(1, 3)] = 9", "extra must be between 1 and 3, not 9"),
        ("extra: int = None", "extra must be a whole number"),
        (
            "extra: Annotated[int, Condition('nope', ('x',))] = 1",
            "extra has an effect with nope x alone, which is no arg",
        ),
        ("name: str = 'x'", "name is no name for an argument"),
        ("recipe: str = 'x'", "recipe is no name for an argument"),
        ("prior: float = 1.0", "prior must keep its type, for it is the class prior of all models"),
        ("coupling: int = 1", "coupling is no name for an argument"),
    ],
)
def test_recipe_whose_fields_cannot_be_settings_is_refused(own: Any, line: str, message: str) -> None:
    Path("my_parts.py").write_text(RECIPE.replace("FIELD", line))
    outcome, _ = own("recipes --import my_parts.py")
    assert outcome.code == 2 and message in outcome.err, outcome.err


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("@dataclass(frozen=True)\n", ""),
        ('@register_recipe("own")\n@dataclass(frozen=True)', '@dataclass(frozen=True)\n@register_recipe("own")'),
        ("(ScnfFast)", ""),
    ],
)
def test_recipe_that_is_no_dataclass_under_recipe_is_refused(own: Any, old: str, new: str) -> None:
    Path("my_parts.py").write_text(RECIPE.replace("FIELD", "extra: int = 1").replace(old, new))
    outcome, _ = own("recipes --import my_parts.py")
    assert outcome.code == 2 and re.search("must be a (dataclass|class under)", outcome.err), outcome.err


def test_recipe_with_slots_and_postponed_annotations_is_accepted(own: Any) -> None:
    text = RECIPE.replace("FIELD", "extra: Annotated[int, Range(1, 3)] = 1")
    text = "from __future__ import annotations\n" + text.replace("frozen=True", "frozen=True, slots=True")
    Path("my_parts.py").write_text(text)
    assert "extra: a whole number between 1 and 3" in own("recipes own --import my_parts.py")[0].out
    outcome, _ = own("train --config digits.yaml --recipe own --import my_parts.py --extra 3", TINY)
    assert outcome.code == 0 and own("evaluate last")[0].code == 0, outcome.err


# --- networks and transforms that break their contract

BROKEN = """
import torch
from torch import nn
from scnf import register_network, register_transform
from scnf.transforms import Transform

class Net(nn.Module):
    def __init__(self, i, o, h, b):
        super().__init__()
        self.conv = nn.Conv2d(i, o, 3, padding=1)
        self.norm = nn.BatchNorm2d(o)
    def forward(self, x):
        return NETWORK

register_network("own")(Net)

@register_transform("own")
class Layer(Transform):
    def __init__(self, features):
        super().__init__()
    def forward(self, x, context=None):
        return FORWARD
    def inverse(self, x, context=None):
        return INVERSE
"""
WELL = {"NETWORK": "self.conv(x)", "FORWARD": "x, x.new_zeros(len(x))", "INVERSE": "x, x.new_zeros(len(x))"}


def broken(part: str = "", code: str = "") -> str:
    text = BROKEN
    for name, well in WELL.items():
        text = text.replace(name, code if name == part else well)
    return text


@pytest.mark.parametrize(
    ("part", "code", "message"),
    [
        ("NETWORK", "self.conv(x)[:, 1:]", "model.network must map"),
        ("NETWORK", "self.conv(x)[..., :1, :1]", "model.network must map"),
        ("NETWORK", "None", "model.network must give a tensor with a row for each input, not NoneType"),
        ("NETWORK", "self.norm(self.conv(x))", "model.network must keep rows apart"),
        ("NETWORK", "self.nothing(x)", r"fails on four random inputs in .*my_parts.py, line \d+, in forward"),
        ("FORWARD", "x", r"transform Layer must return \(outputs, logabsdet\), not a tensor"),
        ("FORWARD", "(x, x.sum())", r"transform Layer must give logabsdet of shape \[4\], not \[\]"),
        ("FORWARD", "2 * x, x.new_zeros(len(x))", "transform Layer must have an inverse that gives its inputs back"),
        ("INVERSE", "x, x.new_ones(len(x))", "transform Layer must give the negative logabsdet"),
        ("INVERSE", "None", "cannot unpack"),
    ],
)
def test_parts_that_break_their_contract_are_refused_before_a_run_is_made(
    own: Any, part: str, code: str, message: str
) -> None:
    Path("my_parts.py").write_text(broken(part, code))
    outcome, _ = own("train --config digits.yaml --import my_parts.py --network own --linear own", TINY)
    assert outcome.code == 2 and re.search(message, outcome.err), outcome.err
    assert "Traceback" not in outcome.err and not Path("logs").exists()


def test_parts_that_keep_their_contract_train(own: Any) -> None:
    Path("my_parts.py").write_text(broken())
    outcome, _ = own("train --config digits.yaml --import my_parts.py --network own --linear own", TINY)
    assert outcome.code == 0 and own("evaluate last")[0].code == 0, outcome.err


def test_registered_command_that_fails_is_named_with_its_file(own: Any) -> None:
    head = "from scnf import register_command\n"
    body = "@register_command('own')\ndef own(words):\n    return len(words) and 1 / 0\n"
    Path("my_parts.py").write_text(head + body)
    outcome, _ = own("own --import my_parts.py x")
    assert outcome.code == 2
    assert re.search("your own code failed in my_parts.py, line 4, in own: ZeroDivisionError", outcome.err)
    assert own("own --import my_parts.py")[0].code == 0
    Path("my_parts.py").write_text(head + "register_command('own')(lambda words: 300)\n")
    assert "returned 300, which is no exit code" in own("own --import my_parts.py")[0].err


def test_imported_part_serves_a_new_training_and_not_the_weights_of_a_run(
    own: Any, trained: Run, last_run: Any
) -> None:
    path = Path("my_parts.py")
    path.write_text(path.read_text().replace("channels: int = 8", "channels: int = 4"))
    Path("my_other.py").write_text(path.read_text())
    outcome, _ = own("evaluate 1 --import my_other.py")
    assert outcome.code == 0 and "is read with its own 'own', of" in outcome.err
    config = (trained.path / "config.yaml").read_text().replace("channels: 8", "channels: 4")
    (trained.path / "config.yaml").write_text(config)
    outcome, _ = own(f"train --config {trained.path}/config.yaml --import my_other.py --max_steps 1")
    assert outcome.code == 0, outcome.err
    assert [each.name for each in sorted((last_run().path / "parts").glob("*.py"))] == ["01-my_other.py"]


def test_trust_refusal_says_that_the_imported_file_differs(own: Any, trained: Run) -> None:
    Path("my_other.py").write_text(Path("my_parts.py").read_text() + "\n")
    outcome, _ = own("evaluate 1 --import my_other.py", user="you")
    assert outcome.code == 2 and "a file that --import names differs from it" in outcome.err


def test_transform_contract_is_checked_also_away_from_the_identity(own: Any) -> None:
    text = broken("FORWARD", "x * self.a.exp(), x.new_zeros(len(x))").replace(
        "        super().__init__()\n    def forward(self, x, context",
        "        super().__init__()\n        self.a = nn.Parameter(torch.zeros(()))\n    def forward(self, x, context",
    )
    assert "self.a =" in text
    Path("my_parts.py").write_text(text)
    outcome, _ = own("train --config digits.yaml --import my_parts.py --linear own", TINY)
    assert outcome.code == 2 and "transform Layer must have an inverse" in outcome.err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("trian", "did you mean train?"),
        ("certainty last", "one of your own needs --import FILE"),
        ("train --config digits.yaml --data.name mine", "one of your own needs --import FILE"),
        ("train --config digits.yaml --recipe mine", "a recipe of your own needs --import FILE"),
    ],
)
def test_unknown_name_is_refused_with_a_suggestion_or_a_hint_at_import(own: Any, words: str, hint: str) -> None:
    outcome, _ = own(words)
    assert outcome.code == 2 and hint in outcome.err
