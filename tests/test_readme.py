"""README and docs: their Python runs, their commands parse, and their figures are those of the file of results."""

import ast
import re
import sys
from pathlib import Path

import pytest

from scnf.recipes import build
from scnf.settings import load_settings
from scnf.shipped import find_config
from scnf.training.metrics import NOISE_DRAWS

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import results

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = sorted(path for path in (REPOSITORY / "docs").rglob("*.md") if "_build" not in path.parts)
TEXTS = {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
TEXTS["README.md"] = README
NOT_RUN = "<!-- not run -->\n"
"""Before a Python block that is only to be read. tests/test_parts.py runs those after `<!-- file: NAME -->`."""


def python_blocks(text: str) -> list[str]:
    text = re.sub(r"^<!-- file: .*? -->\n```python\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(rf"(?<!{NOT_RUN})^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


WITH_PYTHON = [name for name, text in TEXTS.items() if python_blocks(text)]


def test_readme_has_one_python_example() -> None:
    assert len(python_blocks(README)) == 1


def test_readme_has_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_pages_have_python_blocks_that_run_in_order(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where they may write files
    namespace: dict[str, object] = {"__name__": "__page__"}
    for number, block in enumerate(python_blocks(TEXTS[name]), start=1):
        exec(compile(block, f"{name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize(("mark", "part"), [("train", "train_flow_ssl.py --config config.yaml"), ("test", "pytest")])
def test_readme_marks_the_two_commands(mark: str, part: str) -> None:
    found = re.search(rf"<!-- {mark} -->\n```bash\n(.*?)\n```", README, re.DOTALL)
    assert found and part in found[1] and "\n" not in found[1]


def test_configurations_page_names_every_configuration() -> None:
    for path in (REPOSITORY / "configs").glob("*.yaml"):
        assert f"`{path.name}`" in TEXTS["docs/configurations.md"]


def test_configurations_page_counts_parameters() -> None:
    rows = re.findall(
        r"^\| `(\w+\.yaml)` \| `[\w-]+` \|(?:.*?\|)? ([\d,]+) \|", TEXTS["docs/configurations.md"], re.MULTILINE
    )
    assert len(rows) > 20
    built: dict[str, int] = {}
    for name, told in rows:
        settings = load_settings(find_config(name))
        data, model = settings.data.name, settings.model
        shape = {"digits": (1, 8, 8), "moons": (2,), "circles": (2,)}.get(data, (1, 28, 28))
        levels, classes = {"digits": 17, "moons": None, "circles": None}.get(data, 256), 10 if len(shape) > 1 else 2
        key = repr((model, shape))
        if key not in built:
            parameters = build(model, shape, classes, levels=levels).parameters()
            built[key] = sum(parameter.numel() for parameter in parameters)
        assert f"{built[key]:,}" == told, name


@pytest.mark.parametrize("name", TEXTS)
def test_pages_name_configurations_that_exist(name: str) -> None:
    for config_name in re.findall(r"--config (\w+\.yaml)", TEXTS[name]):
        assert find_config(config_name)


@pytest.mark.parametrize("name", ["README.md", "docs/getting-started.md", "docs/guides/researcher.md"])
def test_pages_type_settings_that_exist(name: str) -> None:
    """Each `train_flow_ssl.py` line of a block for the shell has settings that load."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", TEXTS[name], re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [line.partition("#")[0].split() for line in lines if line.startswith("python train_flow_ssl.py")]
    commands = [words[2:] for words in commands if not {"--help", "--print_config", "--resume"} & set(words)]
    assert commands
    for words in commands:
        place = words.index("--config") if "--config" in words else None
        file = find_config(words[place + 1] if place is not None else "config.yaml")
        load_settings(file, words if place is None else words[:place] + words[place + 2 :])


def test_results_in_the_pages_are_those_of_results_yaml() -> None:
    assert results.differences(REPOSITORY) == []


def test_results_check_finds_a_changed_figure(tmp_path: Path) -> None:
    for name in ("README.md", "docs/results.md", "docs/results.yaml", *map(str, cards())):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((REPOSITORY / name).read_text(encoding="utf-8"), encoding="utf-8")
    assert results.differences(tmp_path) == []
    page = tmp_path / "README.md"
    page.write_text(README.replace("1.97 ± 0.24", "1.07 ± 0.24"), encoding="utf-8")
    assert any("1.97 ± 0.24" in line for line in results.differences(tmp_path))


def cards() -> list[Path]:
    return [path.relative_to(REPOSITORY) for path in (REPOSITORY / "pretrained").glob("*/card.json")]


def test_results_show_each_row_once_and_a_configuration_that_exists() -> None:
    rows, shown = results.load(REPOSITORY)
    assert len(set(shown)) == len(shown) and set(shown) <= set(rows)
    for row in rows.values():
        assert (REPOSITORY / "configs" / row["config"]).is_file() and row["config"] in row["command"]


def test_results_count_draws_of_the_noise_as_cards_do() -> None:
    assert results.NOISE_DRAWS == NOISE_DRAWS


def test_results_interval_is_wilsons() -> None:
    low, high = results.interval(3.0, 100)
    assert (round(low, 2), round(high, 2)) == (1.03, 8.45)


def test_troubleshooting_quotes_messages_of_the_code() -> None:
    said = "\n".join(text for path in (REPOSITORY / "scnf").rglob("*.py") for text in messages(path.read_text()))
    quoted = re.findall(r"^\| `(.+?)`", TEXTS["docs/troubleshooting.md"], re.MULTILINE)
    assert len(quoted) > 30
    for quote in quoted:
        for part in (part.strip(" ',;?") for part in quote.split("...")):
            assert part in said, quote


def messages(source: str) -> list[str]:
    """Every text of a module, with nothing for what an f-string fills in."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            constants = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            found.append("".join(map(str, constants)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


@pytest.mark.parametrize("text", ["", "[1]", "rows: 3", "rows: [1]\nreadme: []", "rows: [{card: nowhere}]", "a: ["])
def test_results_script_reports_a_damaged_file(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["results.py", "--check"])
    monkeypatch.setattr(results.differences, "__defaults__", (tmp_path,))
    assert results.main() == 2 and capsys.readouterr().err.startswith("error: docs/results.yaml")
