"""What must agree between the files that describe the project."""

import configparser
import re

import pytest
import yaml

from conftest import REPOSITORY
from scnf import __version__


def test_changelog_begins_with_this_version() -> None:
    found = re.search(r"^## \[(.*?)\]", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert found and found[1] == __version__


def test_citation_names_this_version() -> None:
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__


@pytest.mark.parametrize("tool", ["ruff", "mypy"])
def test_pre_commit_hooks_have_the_versions_of_the_dev_extra(tool: str) -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    pinned = re.findall(rf"^{tool}==(.*)$", setup["options.extras_require"]["dev"], re.MULTILINE)
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    named = {"ruff": r"ruff==([\d.]+)", "mypy": r"mypy \(([\d.]+)\)"}[tool]
    found = {version for hook in hooks for version in re.findall(named, str(hook))}
    assert len(pinned) == 1 and found == set(pinned)
