import contextlib
import dataclasses
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from scnf import shipped
from scnf.arguments import PATH, Range, arguments_of, field_docs, in_words, takes_none
from scnf.errors import UserError
from scnf.recipes import RECIPES, recipe_of
from scnf.settings import Settings, TrainSettings, check_fixed_settings, fixed_settings, to_yaml
from scnf.settings import load_settings as load
from scnf.settings.messages import OTHER_NAMES as ANSWERS
from scnf.settings.schema import DEFAULT_RECIPE, SECTIONS, leaves, values_of

LEAVES = leaves(recipe_of(DEFAULT_RECIPE))


def changed(settings: Settings) -> dict[str, Any]:
    """What differs from the defaults, by full name."""

    defaults = values_of(Settings())
    return {name: value for name, value in values_of(settings).items() if value != defaults[name]}


def range_of(kind: Any) -> Range | None:
    """The range of the numbers that a type takes, also inside a union or a list."""
    inside = (range_of(part) for part in get_args(kind) if get_args(part))
    return next((note for note in (*getattr(kind, "__metadata__", ()), *inside) if isinstance(note, Range)), None)


def value(settings: Settings, name: str) -> Any:
    return values_of(settings)[name]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.yaml"


# --- what wins


def test_settings_without_arguments_are_the_defaults() -> None:
    assert load(None) == load(None, []) == Settings()


def test_yaml_overrides_defaults_and_arguments_override_yaml(path: Path) -> None:
    path.write_text("seed: 5\ntrain:\n  epochs: 7\n  lr: 0.5\ndata: {name: digits}\n")
    assert changed(load(path)) == {"seed": 5, "train.epochs": 7, "train.lr": 0.5, "data.name": "digits"}
    settings = load(path, ["--train.epochs", "9", "--seed=6"])
    assert changed(settings) == {"seed": 6, "train.epochs": 9, "train.lr": 0.5, "data.name": "digits"}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_arguments_override_config_in_any_order(scnf: Any, tmp_path: Path, order: tuple[int, ...]) -> None:
    (tmp_path / "some.yaml").write_text("seed: 5\ntrain: {epochs: 7}")
    parts = ["--epochs 9", "--config some.yaml", "--seed 6"]
    printed = scnf("train", *(parts[index] for index in order), "--print_config")
    assert printed.code == 0
    tree = yaml.safe_load(printed.out)
    assert (tree["train"]["epochs"], tree["seed"]) == (9, 6)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--epochs 3", {"train.epochs": 3}),
        ("--epochs=3", {"train.epochs": 3}),
        ("--train.epochs 3", {"train.epochs": 3}),
        ("--max-steps 3", {"train.max_steps": 3}),
        ("--max_steps 3 --max_steps 4", {"train.max_steps": 4}),
        ("--compile", {"train.compile": True}),
        ("--compile --seed 1", {"train.compile": True, "seed": 1}),
        ("--compile false", {}),
        ("--autocast=false", {"train.autocast": False}),
        ("--learn_means false", {"model.learn_means": False}),
        ("--pretrained", {"pretrained": shipped.SHIPPED}),
        ("--pretrained --seed 1", {"pretrained": shipped.SHIPPED, "seed": 1}),
        ("--pretrained 7", {"pretrained": "7"}),
        ("--pretrained a/b", {"pretrained": "a/b"}),
        ("--lr 1e-4", {"train.lr": 1e-4}),
        ("--lr 1", {"train.lr": 1.0}),
        ("--channels 8", {"model.channels": 8}),
        ("--prior [0.25,0.75]", {"model.prior": (0.25, 0.75)}),
        ("--prior learned", {"model.prior": "learned"}),
        ("--labels_per_class 3", {"data.labels_per_class": 3}),
        ("--runs.name a=b", {"runs.name": "a=b"}),
        ("--runs.name 1e3", {"runs.name": "1e3"}),
        ("--data.root -", {"data.root": "-"}),
    ],
)
def test_argument_values_get_the_type_of_their_setting(words: str, expected: dict[str, Any]) -> None:
    settings = load(None, words.split())
    assert changed(settings) == expected
    for name, each in expected.items():
        assert type(value(settings, name)) is type(each)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", {}),
        ("train: {lr: 1e-4}", {"train.lr": 1e-4}),
        ("train: {lr: 1}", {"train.lr": 1.0}),
        ("data.name: digits", {"data.name": "digits"}),
        ("model: {channels: 8, prior: [0.5, 0.5]}", {"model.channels": 8, "model.prior": (0.5, 0.5)}),
        ("data: {labels_per_class: null}", {}),
        ("pretrained: 'pretrained/é'", {"pretrained": "pretrained/é"}),
        ("runs: {name: 2001-99-99}", {"runs.name": "2001-99-99"}),
        ("data: {num_labels: 0100, data_seed: 010}", {"data.data_seed": 10}),
    ],
)
def test_yaml_values_get_the_type_of_their_setting(path: Path, text: str, expected: dict[str, Any]) -> None:
    path.write_text(text, encoding="utf-8")
    settings = load(path)
    assert changed(settings) == expected and isinstance(settings.train.lr, float)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_config_without_settings_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(UserError, match=f"{path.name} holds no settings"):
        load(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("objective: {distortion: true, self_training: 0}", {"objective.neighbours": "distortion"}),
        ("objective.distortion: true", {"objective.neighbours": "distortion"}),
        ("objective: {distortion: false, self_training: 0}", {}),
        (
            "format: 1\nobjective: {distortion: false, self_training: 2}",
            {"objective.neighbours": "self-training", "objective.self_training_networks": 2},
        ),
        ("format: 2\nobjective: {neighbours: gradients}", {"objective.neighbours": "gradients"}),
    ],
)
def test_format_1_settings_are_read_under_their_new_names(path: Path, text: str, expected: dict[str, Any]) -> None:
    path.write_text(text)
    settings = load(path)
    assert changed(settings) == expected
    before = {name: each for name, each in fixed_settings(settings).items() if name not in {"format", *expected}}
    if "distortion: true" in text:
        check_fixed_settings({**before, "objective.distortion": True, "objective.self_training": 0}, settings, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format: 4", "format must be a whole number from 1 to 3, not 4; a newer version"),
        ("format: new", "format must be a whole number from 1 to 3, not 'new'"),
        ("format: true", "format must be a whole number from 1 to 3, not True"),
        ("objective: {distortion: true, self_training: 3}", "names the first neighbours twice"),
        ("objective: {neighbours: gradients, self_training: 2}", "names the first neighbours twice"),
        ("format: 2\nobjective: {distortion: true}", r"'objective.distortion' is called objective.neighbours"),
        ("objective: {distortion: 2}", r"'objective.distortion' is called objective.neighbours"),
    ],
)
def test_unknown_format_and_duplicate_old_names_are_refused(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load(path)


# --- names


OTHER_NAMES = {
    "supervised": "data.num_labels",
    "sup_weight": "objective.labelled_weight",
    "cl_weight": "objective.classifier_weight",
    "sup_sample_weight": "data.labelled_share",
    "train_bs": "train.batch_size",
    "learning_rate": "train.lr",
}


@pytest.mark.parametrize("name", OTHER_NAMES)
@pytest.mark.parametrize("section", ["", "train."])
def test_names_of_other_projects_are_answered_with_the_setting(path: Path, name: str, section: str) -> None:
    for words in ([f"--{section}{name}", "1"], [f"--{section}{name}=1"]):
        with pytest.raises(UserError, match=f"command line: '{section}{name}' is called {OTHER_NAMES[name]}"):
            load(None, words)
    path.write_text(f"train: {{{name}: 1}}" if section else f"{name}: 1")
    with pytest.raises(UserError, match=f"some.yaml: '{section}{name}' is called {OTHER_NAMES[name]}"):
        load(path)


def test_answers_to_names_of_other_projects_are_settings() -> None:
    assert {answer.split()[0] for answer in ANSWERS.values()} <= LEAVES.keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epohcs 3", "command line: there is no setting 'epohcs'; did you mean train.epochs"),
        ("--train.epohcs 3", "did you mean train.epochs"),
        ("--data.epochs 3", "did you mean train.epochs"),
        ("--numlabels 3", "did you mean data.num_labels"),
        ("--root x", "did you mean data.root or runs.root"),
        ("--name x", "did you mean data.name or runs.name"),
        ("--qqq 3", "--help lists all settings"),
        ("--train 3", "there is no setting 'train'"),
        ("--train.lr.x 3", "there is no setting 'train.lr.x'"),
        ("stray", "'stray' stands alone"),
        ("config.yaml", "as --name value; a configuration as --config config.yaml"),
        ("--compile true stray", "'stray' stands alone"),
        ("--lr=1 2", "'2' stands alone"),
        ("--epochs", "--train.epochs needs a value"),
        ("--epochs --compile", "--train.epochs needs a value"),
    ],
)
def test_unknown_and_incomplete_arguments_are_refused_with_a_hint(words: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(None, words.split())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epohcs: 3}", "some.yaml: there is no setting 'train.epohcs'; did you mean train.epochs"),
        ("epochs: 3", "did you mean train.epochs"),
        ("modle: {recipe: x}", "there is no setting 'modle'"),
        ("1: 2", "there is no setting '1'"),
        ("data: {1: 2}", "there is no setting 'data.1'"),
        ("config: other.yaml", "there is no setting 'config'"),
        ("train: 5", "train is a section"),
        ("train: [1]", "train is a section"),
        ("train:", "train is a section"),
        ("- seed: 1", "must hold `name: value` lines, not a list"),
        ("seed", "must hold `name: value` lines, not a str"),
        ("seed: [", "cannot read the configuration"),
        ("a: b: c", "cannot read the configuration"),
        ("seed: 1\ntrain: {epochs: 1}\nseed: 2", "'seed' stands twice, in lines 1 and 3"),
        ("train:\n  epochs: 1\ndata: {name: digits}\ntrain:\n  lr: 1", "'train' stands twice, in lines 1 and 4"),
        ("train:\n  epochs: 1\n  'epochs': 2", "'epochs' stands twice, in lines 2 and 3"),
        ("train.epochs: 1\ntrain: {epochs: 2}", "train.epochs is set twice, as 'train.epochs' and as 'epochs'"),
        ("seed: &seed 1\ndata: {data_seed: *seed}", "write out what the alias *seed stands for"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]", "write out what the alias *a stands for"),
        ("seed: \t1\n\tx: 2", "cannot read the configuration"),
        ("[" * 5000, "cannot read the configuration"),
        ("seed: \x07", "cannot read the configuration"),
    ],
)
def test_invalid_yaml_is_refused_with_file_and_reason(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_yaml_is_read_as_utf8_whatever_the_locale(start: Any, path: Path, locale: str) -> None:
    path.write_text("seed: 5  # für alle\nruns: {name: läufe}", encoding="utf-8")
    plain = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    process = start("-m", "scnf.cli", "train", "--config", path, "--print_config", env={**os.environ, **plain})
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "") and "seed: 5" in out and "name: läufe" in out


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_config_that_is_a_directory_or_fifo_is_refused_at_once(path: Path, kind: str) -> None:
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    with pytest.raises(UserError, match=r"cannot read the configuration .*some.yaml: .*it is a (FIFO|directory)"):
        load(path)


def test_yaml_that_is_not_utf8_is_refused(path: Path) -> None:
    path.write_bytes(b"seed: 1 # \xff\xfe\n")
    with pytest.raises(UserError, match="cannot read the configuration"):
        load(path)


@pytest.mark.parametrize("key", ["seed", "pretrained", "unknown"])
@pytest.mark.parametrize("tag", ["object/apply:os.system", "object/new:os.system", "name:os.system"])
def test_yaml_cannot_run_anything(path: Path, key: str, tag: str) -> None:
    trace = path.parent / "was-here"
    path.write_text(f"{key}: !!python/{tag} ['touch {trace}']")
    with pytest.raises(UserError, match="cannot read the configuration"):
        load(path)
    assert not trace.exists()


@pytest.mark.parametrize("tail", ["", "x"])
def test_arguments_cannot_run_anything(tmp_path: Path, tail: str) -> None:
    trace = tmp_path / "was-here"
    for name in ("seed", "model.channels", "runs.name", "prior"):
        with contextlib.suppress(UserError):
            load(None, [f"--{name}", f"!!python/object/apply:os.system ['touch {trace}']{tail}"])
    assert not trace.exists()


# --- values

WRONG_TYPES = [
    ("train.epochs", "3.5"),
    ("train.epochs", "many"),
    ("train.epochs", "true"),
    ("train.epochs", "null"),
    ("train.lr", "fast"),
    ("train.lr", "true"),
    ("train.lr", "[1]"),
    ("train.compile", "perhaps"),
    ("train.optimizer", "sgd"),
    ("train.schedule", "step"),
    ("train.select", "loss"),
    ("train.max_steps", "x"),
    ("model.linear", "lu"),
    ("model.channels", "[8]"),
    ("model.channels", "3.5"),
    ("model.learn_means", "4"),
    ("data.labels_per_class", "ten"),
    ("data.balanced", "2"),
    ("device", "tpu"),
    ("seed", "{a: 1}"),
]
OUT_OF_RANGE = [
    *[("data.labelled_share", value) for value in ("-0.1", "1.5", ".nan")],
    ("data.num_labels", "-1"),
    ("data.labels_per_class", "-1"),
    ("data.data_seed", "-1"),
    ("data.data_seed", str(2**63)),
    ("seed", "-1"),
    ("seed", str(2**31)),
    ("objective.labelled_weight", "-1"),
    *[("objective.labelled_decay", value) for value in ("-0.1", "1.1")],
    ("objective.classifier_weight", "-1e-3"),
    ("train.epochs", "-1"),
    ("train.max_steps", "-1"),
    ("train.batch_size", "0"),
    ("train.eval_batch_size", "0"),
    *[("train.lr", value) for value in ("0", "-1e-3", ".nan", ".inf", "1e38")],
    *[("train.weight_decay", value) for value in ("-1", ".nan", ".inf")],
    *[("train.warmup", value) for value in ("-0.1", "1")],
    ("train.grad_clip", "-1"),
    *[("train.ema", value) for value in ("-0.1", "1")],
    *[("model.channels", value) for value in ("0", "-1")],
    *[("model.steps", value) for value in ("0", "-1")],
    ("model.blocks", "-1"),
    ("model.detail_channels", "0"),
    ("model.detail_steps", "-1"),
    ("model.coarse_channels", "-1"),
    ("model.semantic_share", "0"),
    ("model.semantic_share", "1.5"),
    ("model.semantic_channels", "0"),
    ("model.semantic_hidden", "0"),
    *[("data.augment", value) for value in ("-1", "4", ".nan")],
    *[("objective.temperature", value) for value in ("0", "-1", ".nan")],
    ("objective.consistency_weight", "-1"),
    ("train.eval_views", "-1"),
    *[("objective.consistency_ramp", value) for value in ("-0.1", "1.1")],
    *[("objective.confidence", value) for value in ("-0.1", "1.1")],
    ("model.conditional_hidden", "0"),
    ("model.conditional_steps", "0"),
    ("model.conditional_scales", "0"),
    ("model.conditional_blocks", "-1"),
    ("model.embedding", "0"),
    ("model.class_chunk", "0"),
    ("model.spread", "-1"),
    *[("model.latent", value) for value in ("0", "[]", "[64, 0]", "[64, 1000000000000]")],
]


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES + OUT_OF_RANGE)
def test_values_of_wrong_type_or_range_are_refused_by_name(path: Path, name: str, value: str) -> None:
    section, _, leaf = name.rpartition(".")
    recipe = next(each for each in ("scnf-hybrid", "scnf-fast", "m2") if name in leaves(RECIPES[each]))
    path.write_text(
        f"model.recipe: {recipe}\n" + (f"{section}: {{{leaf}: {value}}}" if section else f"{name}: {value}")
    )
    words = ["--recipe", recipe]
    for arguments in ((None, [*words, f"--{name}", value]), (None, [*words, f"--{leaf}={value}"]), (path, [])):
        with pytest.raises(UserError, match=name.replace(".", "[.]")) as caught:
            load(*arguments)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_number_settings_all_have_a_range() -> None:
    elsewhere = {"data.num_validation", "data.classes", "model.prior"}  # the data say, and the prior
    for recipe in RECIPES.values():
        for name, argument in leaves(recipe).items():
            if name not in elsewhere and re.search("number|such as", in_words(argument.kind)):
                assert range_of(argument.kind), name


RANGED = [(name, range_of(each.kind)) for name, each in LEAVES.items() if range_of(each.kind)]


@pytest.mark.parametrize(("name", "allowed"), RANGED, ids=str)
def test_number_beyond_its_range_is_refused_with_the_range(name: str, allowed: Any) -> None:
    chosen = ["--conditional", "flow"] if "conditional_" in name or "embedding" in name else []
    chosen += ["--pixels", "logit"] if name == "model.alpha" else []
    for number in (int(allowed.high * 2 + 1), int(allowed.low - 1)):
        with pytest.raises(UserError) as caught:
            load(None, [*chosen, f"--{name}", str(number)])
        assert str(caught.value).startswith(f"wrong setting: {name} must be {allowed}, not ")


TEXTS = [name for name, each in LEAVES.items() if "text" in in_words(each.kind) or "one of" in in_words(each.kind)]
TEXTS.remove("model.recipe")  # an empty name is none of the recipes


@pytest.mark.parametrize("name", TEXTS)
def test_empty_text_is_refused(path: Path, name: str) -> None:
    section, _, leaf = name.rpartition(".")
    path.write_text(f"{section}: {{{leaf}: ''}}" if section else f"{name}: ''")
    for arguments in ((None, [f"--{name}", ""]), (path, [])):
        with pytest.raises(UserError, match=f"{name} is empty"):
            load(*arguments)  # type: ignore[arg-type]


PATHS = [name for name, each in leaves(RECIPES["m1-m2"]).items() if PATH in each.notes]


@pytest.mark.parametrize("name", PATHS)
def test_paths_begin_at_home(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = ["--recipe", "m1-m2", "--data.name", "folder"]  # data.labels has an effect with a folder alone
    assert value(load(None, [*recipe, f"--{name}", "~/there"]), name) == str(tmp_path / "there")
    assert value(load(None, [*recipe, f"--{name}", "a/~"]), name) == "a/~"
    with pytest.raises(UserError, match=f"{name}: cannot tell which directory ~nobody-here is.* path in full"):
        load(None, [*recipe, f"--{name}", "~nobody-here/there"])


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_null_is_refused_for_settings_that_take_no_null(path: Path, name: str) -> None:
    section, _, leaf = name.rpartition(".")
    path.write_text(f"{section}: {{{leaf}: null}}" if section else f"{name}: null")
    if takes_none(LEAVES[name].kind):
        assert load(path) == Settings()
    else:
        with pytest.raises(UserError, match=name):
            load(path)


# --- there and back


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--prior [0.5,0.5] --channels 8 --steps 3 --learn_means false --scale sigmoid --spread 2",
        "--pixels logit --alpha 1e-6 --network resnet --blocks 2 --class_chunk 3 --conditional flow",
        "--recipe ladder-dgm --latent [8,4] --labels gumbel --final_temperature 0.1 --posterior planar",
        "--runs.name 2024-01-01 --runs.root 1_0 --pretrained .5e3",
        "--pretrained 7 --runs.name null --data.root ~/data --lr 1e-10 --max_steps 0 --ema 0",
        "--runs.name 1e-4 --pretrained true --runs.root 1.5e3 --compile --device cpu --labels_per_class 4",
    ],
)
def test_settings_survive_writing_and_reading_yaml(path: Path, words: str) -> None:
    settings = load(None, words.split())
    path.write_text(to_yaml(settings), encoding="utf-8")
    assert load(path) == settings


def test_settings_in_other_scripts_survive_writing_and_reading_yaml(path: Path) -> None:
    settings = Settings()
    settings.runs.name, settings.runs.root = "é: #ß 'x' \"y\"", "läufe/日本"
    path.write_text(to_yaml(settings), encoding="utf-8")
    assert load(path) == settings


def test_setting_choices_are_the_keys_of_the_tables() -> None:
    from scnf.training.loop import OPTIMIZERS, SELECTORS
    from scnf.training.schedules import SCHEDULES

    train = get_type_hints(TrainSettings)
    assert list(get_args(train["optimizer"])) == list(OPTIMIZERS)
    assert list(get_args(train["schedule"])) == list(SCHEDULES)
    assert list(get_args(train["select"])) == list(SELECTORS)


@pytest.mark.parametrize("kind", [Settings, *SECTIONS.values(), *RECIPES.values()], ids=lambda kind: kind.__name__)
def test_settings_are_all_documented(kind: type) -> None:
    documented = field_docs(kind)
    for name, argument in arguments_of(kind).items():
        assert dataclasses.is_dataclass(argument.kind) or documented[name].endswith("."), name


# --- finding a file


def test_config_is_found_as_given_then_in_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = shipped.find_config("digits.yaml")
    assert os.path.isabs(found) and found.parent.name == "configs"
    assert shipped.find_config("configs/digits.yaml") == found
    with pytest.raises(UserError, match=r"no configuration './digits.yaml'; did you mean"):
        shipped.find_config("./digits.yaml")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.yaml").touch()
    assert shipped.find_config("digits.yaml") == Path("configs/digits.yaml")
    (tmp_path / "digits.yaml").touch()
    assert shipped.find_config("digits.yaml") == Path("digits.yaml")
    assert shipped.find_config(str(tmp_path / "digits.yaml")) == tmp_path / "digits.yaml"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("digit.yaml", "did you mean digits.yaml"), ("qqq", "there are c"), ("confg.yaml", "did you mean config.yaml")],
)
def test_config_that_does_not_exist_is_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"there is no configuration '{name}'.*{hint}"):
        shipped.find_config(name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "m2", "--labels", "gumble"], "model.labels must be one of enumerate, gumbel, .*; not 'gumble'"),
        (["--optimizer", "adm"], "train.optimizer must be one of adam, adamw, adamax; not 'adm'"),
        (
            ["--recipe", "m2", "--latent", "wide"],
            r"model.latent must be a whole number or a list such as \[64, 32\]; not 'wide'",
        ),
        (["--epochs", "1.5"], "train.epochs must be a whole number; not '1.5'"),
        (["--lr", "high"], "train.lr must be a number; not 'high'"),
        (["--balanced", "perhaps"], "data.balanced must be true or false; not 'perhaps'"),
    ],
)
def test_value_of_the_wrong_kind_is_refused_in_words(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(None, words)


@pytest.mark.parametrize("text", ["#1", "&a", "---", "!x", "[1", "5", "1e3", "true", "a: b"])
def test_text_settings_stay_text_even_if_yaml_reads_another_type(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps({"pretrained": text, "runs": {"name": text}}))
    for settings in (load(file), load(None, ["--pretrained", text, f"--runs.name={text}"])):
        assert (settings.pretrained, settings.runs.name) == (text, text)
    assert load(file, ["--pretrained", "null"]).pretrained is None


@pytest.mark.parametrize(
    "line",
    [
        *("seed: !!bool abc", "seed: !!int ''", "seed: !!int '-'", "seed: !!float ''", "seed: !!timestamp x"),
        *("train: {lr: 1:30.5}", "train: {epochs: 1:30}", 'runs: {root: "a\\0b"}', 'data: {root: "a\\0b"}'),
    ],
)
def test_yaml_values_invalid_for_their_type_are_user_errors(line: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(line)
    with pytest.raises(UserError):
        load(tmp_path / "x.yaml")


# --- the recipe decides which settings there are


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--recipe scnf-fsat", "model.recipe must be one of .*; not 'scnf-fsat'; did you mean scnf-fast"),
        ("--recipe m2 --spread 2", "the recipe m2 takes no argument 'spread'; .*scnf-gmm.* do. Drop it, or set"),
        ("--model.latent 2", "the recipe scnf-hybrid takes no argument 'latent'; m1, "),
        ("--alpha 0.1", "model.alpha has an effect with pixels logit alone, and pixels is levels: drop it"),
        ("--recipe scnf-fast --blocks 3", "model.blocks has an effect with network other than conv alone, and network"),
        ("--recipe scnf-fast --means data", "model.means has an effect with conditional gaussian alone"),
        ("--recipe m2 --model.temperature 0.5", "model.temperature has an effect with labels gumbel, .* alone"),
    ],
)
def test_recipe_refuses_unknown_and_unused_arguments(path: Path, words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(None, words.split())
    given = dict(zip(*[iter(words.replace("--", "").replace("model.", "").split())] * 2, strict=True))
    path.write_text(yaml.safe_dump({"model": {name: yaml.safe_load(text) for name, text in given.items()}}))
    with pytest.raises(UserError, match=message):
        load(path)


def test_help_shows_the_arguments_of_the_recipe_alone(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text("model: {recipe: m2}")
    for arguments, mine, other in (((path, ["--help"]), "latent", "steps"), ((None, ["--help"]), "steps", "latent")):
        with pytest.raises(SystemExit) as caught:
            load(*arguments)
        told = capsys.readouterr().out
        assert caught.value.code == 0
        assert f"--model.{mine} (a whole number" in told and f"--model.{other} (" not in told


@pytest.mark.parametrize("recipe", RECIPES)
def test_saved_settings_hold_all_arguments_of_the_recipe(recipe: str) -> None:
    kept = yaml.safe_load(to_yaml(load(None, ["--recipe", recipe])))
    assert kept["format"] == 3
    unused = {name for name, each in arguments_of(RECIPES[recipe]).items() if each.condition}
    assert set(arguments_of(RECIPES[recipe])) - unused <= kept["model"].keys() - {"recipe"}


# --- runs of earlier versions


@pytest.mark.parametrize("recipe", RECIPES)
def test_run_of_format_1_or_2_has_the_defaults_of_its_time(recipe: str, path: Path) -> None:
    """The defaults of that time are written down by hand, so that a default that changes leaves them as they are."""
    for number in (None, 1, 2):
        path.write_text(f"model: {{recipe: {recipe}}}" + (f"\nformat: {number}" if number else ""))
        known = load(path, from_run=True).model
        assert known.arguments() == RECIPES[recipe]().arguments(), "as long as no default has changed since"


def test_old_run_keeps_old_defaults_when_new_ones_change(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import dataclass

    from scnf.recipes import ScnfFast

    @dataclass(frozen=True)
    class Changed(ScnfFast):
        """scnf-fast of a later day."""

        channels: int = 7
        conditional: str = "gaussian"
        means: str = "data"

    Changed.name = "scnf-fast"
    monkeypatch.setitem(RECIPES, "scnf-fast", Changed)
    path.write_text("model: {recipe: scnf-fast, steps: 3}")
    now, then = load(path).model, load(path, from_run=True).model
    assert (now.channels, now.conditional, now.steps) == (7, "gaussian", 3)  # type: ignore[attr-defined]
    assert (then.channels, then.conditional, then.steps) == (96, "flow", 3)  # type: ignore[attr-defined]


def test_old_default_of_linear_depends_on_the_class_conditional_part(path: Path) -> None:
    for more, linear in (("", "full"), (", conditional: gaussian", "plu"), (", linear: qr", "qr")):
        path.write_text(f"model: {{recipe: scnf-toy{more}}}")
        assert value(load(path, from_run=True), "model.linear") == linear


@pytest.mark.parametrize(
    ("recipe", "blocks", "network"),
    [("scnf-fast", 0, "conv"), ("scnf-fast", 2, "resnet"), ("scnf-paper", 1, "resnet-reflect"), ("scnf-toy", 0, "mlp")],
)
def test_old_run_settings_name_their_network(path: Path, recipe: str, blocks: int, network: str) -> None:
    path.write_text(f"format: 2\nmodel: {{recipe: {recipe}, blocks: {blocks}}}")
    assert value(load(path, from_run=True), "model.network") == network


def test_resume_of_an_old_run_compares_with_the_defaults_of_its_time(path: Path) -> None:
    settings = load(None, ["--recipe", "scnf-fast", "--channels", "8"])
    old: dict[str, Any] = {name: None for name in fixed_settings(settings) if name.startswith("model.")}
    old |= {"model.recipe": "scnf-fast", "model.prior": "uniform", "model.channels": 8, "model.means": None}
    others = {name: each for name, each in fixed_settings(settings).items() if not name.startswith("model.")}
    del others["format"]
    check_fixed_settings({**others, **old}, settings, path)
    with pytest.raises(UserError, match=r"model.channels is 96 in it, not 8.*--model.channels 8"):
        check_fixed_settings({**others, **old, "model.channels": None}, settings, path)
