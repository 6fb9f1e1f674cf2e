"""The README's own code runs, and its commands are the ones that CI takes from it."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_examples() -> None:
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", BLOCKS, ids=["own arrays", "own transform"])
def test_examples_run(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize(("mark", "part"), [("train", "train_flow_ssl.py --config config.yaml"), ("test", "pytest")])
def test_the_two_commands_are_marked(mark: str, part: str) -> None:
    found = re.search(rf"<!-- {mark} -->\n```bash\n(.*?)\n```", README, re.DOTALL)
    assert found and part in found[1] and "\n" not in found[1]


def test_every_configuration_is_in_the_table() -> None:
    for path in (Path(__file__).parents[1] / "configs").glob("*.yaml"):
        assert f"`{path.name}`" in README
