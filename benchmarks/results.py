"""Render the tables of docs/results.md and README.md from docs/results.yaml and the cards of shipped weights.

    python benchmarks/results.py           # write both pages anew, between their markers
    python benchmarks/results.py --check   # exit code 1 where a page is not what would be written

A marker names a table: `<!-- table: flows -->` to `<!-- end of table -->` in docs/results.md, and `<!-- results -->` to
`<!-- end of results -->` in README.md. Text around the markers stays as it is.
"""

import argparse
import difflib
import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scnf.analysis.classes import wilson_interval
from scnf.files import read_text, write_text
from scnf.strict_yaml import read_yaml

ROOT = Path(__file__).parents[1]
README_ROWS = 6
NOISE_DRAWS = 8  # of figures in cards, as in scnf.training.metrics
KNOWN = {
    *("id", "table", "label", "command", "config", "card", "commit", "reported", "current", "machine", "short_machine"),
    *("torch", "seeds", "labels", "test_images", "draws", "error", "error_one_draw", "error_over_views"),
    *("bits_per_dim", "nll", "bound", "latent_draws", "precision", "epochs", "minutes", "images_per_second"),
    *("memory_gb", "note"),
}
REQUIRED = {"id", "table", "label", "config", "machine", "seeds", "labels", "test_images", "draws"}
Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]


def load(root: Path = ROOT) -> tuple[dict[str, Row], list[str]]:
    """Rows by their id, and the ids of those that README.md shows.

    Raises:
        ValueError: a row lacks a field, has an unknown one, or stands twice; or README.md would show too many.
    """
    content = read_yaml(root / "docs" / "results.yaml")
    rows: dict[str, Row] = {}
    for given in content["rows"]:
        row = {**card_figures(root / "pretrained" / given["card"]), **given} if "card" in given else dict(given)
        name = row.get("id")
        if name in rows:
            raise ValueError(f"docs/results.yaml: the row {name} stands twice")
        if wrong := sorted(row.keys() - KNOWN) + sorted(REQUIRED - row.keys()):
            raise ValueError(f"docs/results.yaml: the row {name} has no or unknown fields: {', '.join(wrong)}")
        if not isinstance(row.get("commit") or row.get("reported"), str):  # 837e740 without quotes is a number
            raise ValueError(f"docs/results.yaml: the row {name} names no commit, as text in quotes")
        if not isinstance(figure(row), dict | int | float):
            raise ValueError(f"docs/results.yaml: the row {name} has no error")
        rows[row["id"]] = row
    shown = content["readme"]
    if len(shown) > README_ROWS:
        raise ValueError(f"README.md shows {README_ROWS} rows at most, not {len(shown)}")
    return rows, shown


def card_figures(folder: Path) -> dict[str, Any]:
    """The fields of a row that the card of shipped weights holds."""
    card = json.loads(read_text(folder / "card.json"))
    test = card["figures"]["test"]
    found = {
        "command": f"python train_flow_ssl.py --config {card['config']}",
        "commit": card["commit"],
        "machine": card["machine"],
        "torch": card["torch"],
        "test_images": test["rows"],
        "draws": NOISE_DRAWS,
        "error": 100 * (1 - test["accuracy"]),
        "error_one_draw": {"mean": 100 * (1 - test["one_draw_accuracy"]), "sd": 100 * test["one_draw_accuracy_std"]},
        "bits_per_dim": test["bits_per_dim"],
        "epochs": card["epochs"],
        "minutes": round(card["minutes"], 1),
        "images_per_second": round(card["rate"]),
        "memory_gb": round(card["memory"] / 1000, 1),
    }
    if "views_accuracy" in test:
        found["error_over_views"] = 100 * (1 - test["views_accuracy"])
    return found


def figure(row: Row) -> Any:
    """The error that a row is known by: over draws of the noise where there is one, else of one draw."""
    return row.get("error", row.get("error_one_draw"))


def mean_of(value: Any) -> float:
    """The number that a metric comes to."""
    if isinstance(value, Mapping):
        return statistics.mean(value["values"]) if "values" in value else float(value["mean"])
    return float(value)


def shown(value: Any, form: str = ".2f", unit: str = "") -> str:
    """A metric for people: the number, mean and standard deviation, or `-` where there is none."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        if "values" in value:
            parts = [statistics.mean(value["values"]), statistics.stdev(value["values"])]
        else:
            parts = [value["mean"], value["sd"]]
        return " ± ".join(part if isinstance(part, str) else format(part, form) for part in parts) + unit
    return (value if isinstance(value, str) else format(value, form)) + unit


def interval(error: float, images: int) -> tuple[float, float]:
    """The 95 % interval of an error, in per cent, that so many test images leave (Wilson, JASA 22, 1927).

    Example:
        >>> [round(end, 2) for end in interval(1.0, 10_000)]
        [0.82, 1.21]
    """
    low, high = wilson_interval(error / 100, images)
    return 100 * low, 100 * high


def interval_text(row: Row) -> str:
    low, high = interval(mean_of(figure(row)), row["test_images"])
    return f"{low:.2f} to {high:.2f} %"


def each_seed(row: Row, name: str) -> str:
    """Mean and deviation, and the figure of each seed where it is known."""
    value = row.get(name)
    text = shown(value, unit=" %")
    if isinstance(value, Mapping) and "values" in value:
        text += f" ({', '.join(format(number, '.2f') for number in value['values'])})"
    return text


def density(row: Row) -> str:
    return f"NLL {row['nll']:.3f} nats" if "nll" in row else shown(row.get("bits_per_dim"), ".3f")


def one_draw(row: Row) -> str:
    return "no noise" if row["draws"] is None else shown(row.get("error_one_draw"), unit=" %")


def evaluate_draws(row: Row) -> str:
    return each_seed(row, "error") + (
        f", {row['draws']} draws" if "error" in row and row["draws"] != NOISE_DRAWS else ""
    )


def name(row: Row) -> str:
    return f"{row['label']}, `{row['config']}`"


COLUMNS: dict[str, list[Column]] = {
    "flows": [
        ("run", name),
        ("labels", lambda row: str(row["labels"])),
        ("test error", lambda row: shown(row.get("error"), unit=" %")),
        ("of one draw", one_draw),
        ("over views", lambda row: shown(row.get("error_over_views"), unit=" %")),
        ("95 % interval", interval_text),
        ("bits/dim", density),
        ("minutes", lambda row: shown(row["minutes"], ".1f")),
        ("images/s", lambda row: format(row["images_per_second"], ",")),
        ("peak memory", lambda row: f"{row['memory_gb']:.1f} GB"),
    ],
    "seeds": [
        ("run", name),
        ("S", lambda row: ", ".join(map(str, row["seeds"]))),
        ("test error, one draw", lambda row: each_seed(row, "error_one_draw")),
        ("over draws", evaluate_draws),
        ("over views", lambda row: each_seed(row, "error_over_views")),
        ("bits/dim", density),
    ],
    "supervised": [
        ("network", name),
        ("test error", lambda row: each_seed(row, "error_one_draw")),
        ("95 % interval", interval_text),
    ],
    "variational": [
        ("model", name),
        ("test error", lambda row: each_seed(row, "error_one_draw")),
        ("95 % interval", interval_text),
        ("test bound, nats", lambda row: shown(row.get("bound"), ".1f")),
        ("draws of latents", lambda row: row.get("latent_draws", "-")),
        ("epochs", lambda row: str(row["epochs"])),
        ("training", lambda row: row.get("precision", "-")),
        ("minutes each", lambda row: shown(row.get("minutes"), ".1f")),
    ],
}
"""The tables of docs/results.md: titles of columns, and what they show of a row."""


def readme_minutes(row: Row) -> str:
    return (
        f"{shown(row.get('minutes'), '.1f')}, {row.get('short_machine', row['machine'])}" if "minutes" in row else "-"
    )


README_COLUMNS: list[Column] = [
    ("model", name),
    ("labels", lambda row: str(row["labels"])),
    ("test error", lambda row: shown(readme_error(row), unit=" %" if "error" in row else " % †")),
    ("95 % interval", interval_text),
    ("bits/dim", lambda row: shown(row.get("bits_per_dim"), ".3f")),
    ("minutes", readme_minutes),
]


def readme_error(row: Row) -> Any:
    """The error that a row is known by; of a single training without the deviation of its draws of the noise."""
    value = figure(row)
    return value if len(row["seeds"]) > 1 else mean_of(value)


def table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table in Markdown."""
    lines = [[title for title, _ in columns], ["---"] * len(columns)]
    lines += [[show(row) for _, show in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def provenance(rows: Sequence[Row]) -> str:
    """Where the figures of rows come from, as an item of a list for each command; CONFIGURATION stands for theirs."""
    items: dict[str, list[str]] = {}
    for row in rows:
        alike = sum(origin(row) == origin(other) for other in rows) > 1
        items.setdefault(origin(row) if alike else origin(row, generic=False), []).append(f"**{row['label']}**")
    return "\n".join(item(f"{', '.join(labels)}: {where}") for where, labels in items.items())


def origin(row: Row, generic: bool = True) -> str:
    """The command of a row, its machine, and what is to be said of it."""
    commit, command = row.get("commit"), row["command"]
    command = command.replace(row["config"], "CONFIGURATION") if generic else command
    said = [f"Commit {commit}" if commit else f"Commit not recorded; documented since {row['reported']}"]
    said += [f"torch {row['torch']}"] if "torch" in row else []
    said += [f"machine: {row['machine']}"]
    if len(row["seeds"]) > 1 and " S" in command:
        said += [f"S = {', '.join(map(str, row['seeds']))}"]
    parts = [f"`{command}`.", "; ".join(said) + "."]
    parts += [f"Time: {row['minutes']}."] if isinstance(row.get("minutes"), str) else []
    parts += ["**No present commit gives these figures.**"] if row.get("current") is False else []
    return " ".join([*parts, row.get("note", "")]).strip()


def item(text: str) -> str:
    return textwrap.fill(f"* {text}", 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def section(name_of_table: str, rows: Mapping[str, Row]) -> str:
    """A table of docs/results.md, and below it the commands and machines of its rows."""
    chosen = [row for row in rows.values() if row["table"] == name_of_table]
    return table(COLUMNS[name_of_table], chosen) + "\n\n" + provenance(chosen)


def replaced(text: str, start: str, end: str, content: str, page: str) -> str:
    """`text` with `content` between the lines `start` and `end`.

    Raises:
        ValueError: the markers do not stand there once each, in this order.
    """
    pattern = re.compile(rf"(?<={re.escape(start)}\n).*?(?={re.escape(end)})", re.DOTALL)
    if text.count(start) != 1 or not pattern.search(text):
        raise ValueError(f"{page} must hold the marker {start} once, and {end} after it")
    return pattern.sub(lambda _: f"\n{content}\n\n", text, count=1)


def render(root: Path = ROOT) -> dict[Path, str]:
    """Both pages as they have to be, by their path."""
    rows, chosen = load(root)
    unknown = {row["table"] for row in rows.values()} - COLUMNS.keys()
    if unknown:
        raise ValueError(f"docs/results.yaml names no table of this script: {', '.join(sorted(unknown))}")
    page, readme = root / "docs" / "results.md", root / "README.md"
    text = read_text(page)
    for each in COLUMNS:
        text = replaced(text, f"<!-- table: {each} -->", "<!-- end of table -->", section(each, rows), page.name)
    content = table(README_COLUMNS, [rows[each] for each in chosen])
    marks = "<!-- results -->", "<!-- end of results -->"
    return {page: text, readme: replaced(read_text(readme), *marks, content, readme.name)}


def differences(root: Path = ROOT) -> list[str]:
    """Lines of both pages that are not as they have to be, as a diff."""
    lines: list[str] = []
    for path, text in render(root).items():
        there = read_text(path).splitlines()
        lines += difflib.unified_diff(there, text.splitlines(), str(path.name), "docs/results.yaml", lineterm="", n=0)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where something differs")
    try:
        if parser.parse_args().check:
            lines = differences()
            print("\n".join(lines) if lines else "docs/results.md and README.md are what docs/results.yaml says")
            return 1 if lines else 0
        for path, text in render().items():
            write_text(path, text)
            print(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        print(f"error: docs/results.yaml, a card or a page is damaged: {error!r}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
