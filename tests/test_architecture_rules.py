"""Who may import whom, what `import scnf` may load, which errors name settings, and how names of tests begin."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scnf.recipes import RECIPES
from scnf.settings.schema import leaves

PACKAGE = Path(__file__).parents[1] / "scnf"
TESTS = Path(__file__).parent
FILES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}

ANYONE = {
    *("scnf", "scnf.arguments", "scnf.checks", "scnf.errors", "scnf.files", "scnf.interrupt", "scnf.lock"),
    *("scnf.registry", "scnf.strict_yaml", "scnf.words"),
}
"""What every module may import."""

BELOW = {
    "scnf.batch": set(),
    "scnf.data": {"scnf.data", "scnf.batch"},
    "scnf.machine": set(),
    "scnf.native": {"scnf.native"},
    "scnf.nn": {"scnf.nn", "scnf.native"},
    "scnf.runs": set(),
    "scnf.shipped": set(),
    "scnf.streams": set(),
    "scnf.threads": set(),
    "scnf.transforms": {"scnf.transforms", "scnf.native"},
    "scnf.distributions": {"scnf.distributions", "scnf.transforms.base"},
    "scnf.models": {"scnf.models", "scnf.batch", "scnf.distributions", "scnf.transforms", "scnf.nn"},
    "scnf.objectives": {"scnf.models.base", "scnf.batch"},
}
LEARNING = {
    "scnf.batch",
    "scnf.training",
    "scnf.runs",
    "scnf.objectives",
    "scnf.models",
    "scnf.data",
    "scnf.nn",
    "scnf.machine",
}
PARTS = BELOW.keys() | LEARNING | {"scnf.analysis", "scnf.propagation", "scnf.recipes"}

ALLOWED: dict[str, set[str]] = {
    **{module: set() for module in ANYONE},
    **BELOW,
    "scnf": {
        "scnf.commands",
        "scnf.data",
        "scnf.estimators",
        "scnf.fitting",
        "scnf.nn",
        "scnf.recipes",
        "scnf.trained",
        "scnf.transforms",
    },  # by name, when asked for
    "scnf.parts": set(),
    "scnf.training": LEARNING,
    "scnf.propagation": {"scnf.propagation", *LEARNING},
    "scnf.recipes": {"scnf.recipes", "scnf.batch", "scnf.models", "scnf.distributions", "scnf.transforms", "scnf.nn"},
    "scnf.settings": {"scnf.settings", "scnf.recipes", "scnf.objectives", "scnf.propagation", "scnf.shipped"},
    "scnf.analysis": PARTS,
    "scnf.fitting": {
        *("scnf.fitting", "scnf.experiment", "scnf.failures", "scnf.m1", "scnf.parts", "scnf.settings"),
        *("scnf.settings_data", "scnf.trained", "scnf.weights"),
        *PARTS,
    },
    "scnf.estimators": {"scnf.estimators", "scnf.experiment", "scnf.fitting", "scnf.settings", "scnf.trained", *PARTS},
    "scnf.failures": {"scnf.parts"},
    "scnf.weights": {"scnf.parts", "scnf.runs", "scnf.settings", "scnf.shipped"},
    "scnf.settings_data": {"scnf.settings", "scnf.data"},
    "scnf.m1": {"scnf.settings", "scnf.weights", "scnf.shipped", *PARTS},
    "scnf.experiment": {"scnf.settings", "scnf.settings_data", "scnf.weights", "scnf.m1", *PARTS},
    "scnf.trained": {"scnf.experiment", "scnf.weights", *PARTS},
    "scnf.export": {"scnf.trained", *PARTS},
    "scnf.commands": {
        "scnf.commands",
        "scnf.export",
        "scnf.experiment",
        "scnf.fitting",
        "scnf.m1",
        "scnf.settings",
        "scnf.settings_data",
        "scnf.trained",
        "scnf.parts",
        "scnf.weights",
        "scnf.failures",
        *PARTS,
    },
    "scnf.cli": {"scnf.commands", "scnf.failures", "scnf.parts", "scnf.streams"},
    "scnf.__main__": {"scnf.cli"},
}
"""What each part may import beside that. A name stands for the module and everything in it."""


def within(module: str, part: str) -> bool:
    return module == part or module.startswith(part + ".")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions; `from package import module` gives the module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} has a relative import in line {node.lineno}"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_only_what_its_part_is_allowed(module: str) -> None:
    part = "scnf" if module == "scnf" else ".".join(module.split(".")[:2])
    assert part in ALLOWED, f"say in ALLOWED what {part} may import"
    for imported in imports(MODULES[module]):
        if within(imported, "scnf") and imported not in ANYONE:
            assert any(within(imported, other) for other in ALLOWED[part]), f"{module} imports {imported}"


def test_settings_are_imported_by_commands_and_fitting_only() -> None:
    readers = {module for module, path in MODULES.items() if any(within(i, "scnf.settings") for i in imports(path))}
    parts = ("scnf.commands", "scnf.fitting", "scnf.settings")
    inside = {reader for reader in readers if any(within(reader, part) for part in parts)}
    assert readers - inside == {"scnf.experiment", "scnf.m1", "scnf.settings_data", "scnf.weights"}


def test_nflows_is_imported_by_the_transform_contract_only() -> None:
    users = {module for module, path in MODULES.items() for name in imports(path) if within(name, "nflows")}
    assert users == {"scnf.transforms.base"}


def test_scnf_import_loads_no_heavy_package() -> None:
    heavy = ["torch", "torchvision", "matplotlib", "tensorboard", "sklearn", "nflows", "numpy"]
    code = f"import sys, scnf; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


LIBRARY = {
    *("scnf.batch", "scnf.checks", "scnf.data", "scnf.distributions", "scnf.machine", "scnf.models", "scnf.native"),
    *("scnf.nn", "scnf.objectives", "scnf.propagation", "scnf.recipes", "scnf.threads", "scnf.transforms"),
    *(
        f"scnf.training.{name}"
        for name in ("averaging", "diagnose", "loop", "metrics", "schedules", "subject", "supervised")
    ),
}
"""Modules that know no settings: their errors name their own arguments, and commands name the setting."""
SETTINGS = {name for recipe in RECIPES.values() for name in leaves(recipe)}


def texts_of_errors(tree: ast.AST) -> Iterator[str]:
    """Every text that is a part of a `raise`, also the constant parts of f-strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            yield from (
                part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )


def names_of_settings(text: str) -> list[str]:
    """The settings and options that a message names."""
    settings = re.findall(r"(?<![-\w.])(?:data|train|model|objective|runs)\.[a-z_0-9]+", text)
    return [name for name in settings if name in SETTINGS] + re.findall(r"--[a-z][a-z_.]*", text)


@pytest.mark.parametrize("module", sorted(name for name in MODULES if any(within(name, part) for part in LIBRARY)))
def test_errors_of_the_library_name_no_setting(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert "UserError" not in names, "an error about an argument is an InvalidArgument, see scnf.errors"
    named = {text: names_of_settings(text) for text in texts_of_errors(tree)}
    assert not any(named.values()), {text: names for text, names in named.items() if names}


def test_settings_are_found_in_the_text_of_an_error() -> None:
    source = """raise Error("x", f"must be {a}: set train.lr, model.channels or --data.root {b} of data.batches")"""
    texts = list(texts_of_errors(ast.parse(source)))
    assert [name for text in texts for name in names_of_settings(text)] == ["train.lr", "model.channels", "--data.root"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import scnf.settings", {"scnf.settings"}),
        ("from scnf import settings, UNLABELLED", {"scnf.settings", "scnf"}),
        ("def f():\n    from scnf.data.labels import Split", {"scnf.data.labels"}),
        ("from scnf.transforms import base", {"scnf.transforms.base"}),
    ],
)
def test_imports_of_a_file_are_found_in_every_form(source: str, expected: set[str], tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert set(imports(path)) == expected


NO_SUBJECT = ("a", "an", "the", "it", "there", "what", "nobody", "every", "each", "where", "when", "one_s")
"""What the name of a test must not begin with: the name stands alone in a log, and so begins with its subject."""


def test_test_names_begin_with_their_subject() -> None:
    beginnings = tuple(f"test_{word}_" for word in NO_SUBJECT)
    wrong = [
        f"{path.relative_to(TESTS.parent)}:{node.lineno}: {node.name}"
        for path in sorted(TESTS.rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(beginnings)
    ]
    assert not wrong, "\n".join(
        [
            "these names must begin with their subject, without an article or a pronoun: test_<subject>_<behaviour>,",
            "for example test_checkpoint_of_another_run_is_refused instead of test_it_is_refused:",
            *wrong,
        ]
    )
