import contextlib
import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from scnf import config
from scnf.config import ModelSettings, Settings, TrainSettings, load
from scnf.errors import UserError


def changed(settings: Settings) -> dict[str, Any]:
    """What differs from the defaults, by full name."""

    def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key, value in tree.items():
            items |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return items

    defaults = flat(dataclasses.asdict(Settings()))
    return {name: value for name, value in flat(dataclasses.asdict(settings)).items() if value != defaults[name]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.yaml"


# --- what wins


def test_nothing_given_gives_the_defaults() -> None:
    assert load(None) == load(None, []) == Settings()


def test_yaml_over_defaults_and_typed_over_yaml(path: Path) -> None:
    path.write_text("seed: 5\ntrain:\n  epochs: 7\n  lr: 0.5\ndata: {name: digits}\n")
    assert changed(load(path)) == {"seed": 5, "train.epochs": 7, "train.lr": 0.5, "data.name": "digits"}
    settings = load(path, ["--train.epochs", "9", "--seed=6"])
    assert changed(settings) == {"seed": 6, "train.epochs": 9, "train.lr": 0.5, "data.name": "digits"}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_typed_wins_wherever_config_stands(scnf: Any, tmp_path: Path, order: tuple[int, ...]) -> None:
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
        ("--learn_means", {"model.learn_means": True}),
        ("--learn_means false", {"model.learn_means": False}),
        ("--pretrained", {"pretrained": config.SHIPPED}),
        ("--pretrained --seed 1", {"pretrained": config.SHIPPED, "seed": 1}),
        ("--pretrained 7", {"pretrained": "7"}),
        ("--pretrained a/b", {"pretrained": "a/b"}),
        ("--lr 1e-4", {"train.lr": 1e-4}),
        ("--lr 1", {"train.lr": 1.0}),
        ("--channels 8", {"model.channels": 8}),
        ("--prior [0.25,0.75]", {"model.prior": [0.25, 0.75]}),
        ("--prior learned", {"model.prior": "learned"}),
        ("--labels_per_class 3", {"data.labels_per_class": 3}),
        ("--runs.name a=b", {"runs.name": "a=b"}),
        ("--runs.name 1e3", {"runs.name": "1e3"}),
        ("--data.root -", {"data.root": "-"}),
    ],
)
def test_what_is_typed(words: str, expected: dict[str, Any]) -> None:
    settings = load(None, words.split())
    assert changed(settings) == expected
    for name, value in expected.items():
        found: Any = settings
        for part in name.split("."):
            found = getattr(found, part)
        assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", {}),
        ("train: {lr: 1e-4}", {"train.lr": 1e-4}),
        ("train: {lr: 1}", {"train.lr": 1.0}),
        ("data.name: digits", {"data.name": "digits"}),
        ("model: {channels: 8, prior: [0.5, 0.5]}", {"model.channels": 8, "model.prior": [0.5, 0.5]}),
        ("data: {labels_per_class: null}", {}),
        ("pretrained: 'pretrained/é'", {"pretrained": "pretrained/é"}),
        ("runs: {name: 2001-99-99}", {"runs.name": "2001-99-99"}),
        ("data: {num_labels: 0100, data_seed: 010}", {"data.data_seed": 10}),
    ],
)
def test_what_yaml_says(path: Path, text: str, expected: dict[str, Any]) -> None:
    path.write_text(text, encoding="utf-8")
    settings = load(path)
    assert changed(settings) == expected and isinstance(settings.train.lr, float)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_a_configuration_without_settings_is_refused(path: Path, text: str) -> None:
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
def test_settings_of_format_1_are_read_by_the_names_of_today(path: Path, text: str, expected: dict[str, Any]) -> None:
    path.write_text(text)
    settings = load(path)
    assert changed(settings) == expected
    before = {name: value for name, value in config.lasting(settings).items() if name not in expected}
    if "distortion: true" in text:
        config.check_lasting({**before, "objective.distortion": True, "objective.self_training": 0}, settings, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format: 3", "format must be 1 or 2, not 3; a newer version"),
        ("format: new", "format must be 1 or 2, not 'new'"),
        ("format: true", "format must be 1 or 2, not True"),
        ("objective: {distortion: true, self_training: 3}", "names the first neighbours twice"),
        ("objective: {neighbours: gradients, self_training: 2}", "names the first neighbours twice"),
        ("format: 2\nobjective: {distortion: true}", r"'objective.distortion' is called objective.neighbours"),
        ("objective: {distortion: 2}", r"'objective.distortion' is called objective.neighbours"),
    ],
)
def test_other_formats_are_refused(path: Path, text: str, message: str) -> None:
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
def test_names_of_other_projects_are_answered(path: Path, name: str, section: str) -> None:
    for words in ([f"--{section}{name}", "1"], [f"--{section}{name}=1"]):
        with pytest.raises(UserError, match=f"command line: '{section}{name}' is called {OTHER_NAMES[name]}"):
            load(None, words)
    path.write_text(f"train: {{{name}: 1}}" if section else f"{name}: 1")
    with pytest.raises(UserError, match=f"some.yaml: '{section}{name}' is called {OTHER_NAMES[name]}"):
        load(path)


def test_answers_to_names_of_other_projects_exist() -> None:
    for answer in config.OTHER_NAMES.values():
        section, leaf = answer.split()[0].split(".")
        assert hasattr(getattr(Settings(), section), leaf)


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
def test_wrong_words(words: str, message: str) -> None:
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
        ("train.epochs: 1\ntrain: {epochs: 2}", "train.epochs stands twice, as 'train.epochs' and as 'epochs'"),
        ("seed: &seed 1\ndata: {data_seed: *seed}", "write out what the alias *seed stands for"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]", "write out what the alias *a stands for"),
        ("seed: \t1\n\tx: 2", "cannot read the configuration"),
        ("[" * 5000, "cannot read the configuration"),
        ("seed: \x07", "cannot read the configuration"),
    ],
)
def test_wrong_yaml(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_yaml_is_utf8_whatever_the_locale(start: Any, path: Path, locale: str) -> None:
    path.write_text("seed: 5  # für alle\nruns: {name: läufe}", encoding="utf-8")
    plain = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    process = start("-m", "scnf.cli", "train", "--config", path, "--print_config", env={**os.environ, **plain})
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "") and "seed: 5" in out and "name: läufe" in out


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_a_configuration_that_is_no_file_is_refused_at_once(path: Path, kind: str) -> None:
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    with pytest.raises(UserError, match=r"cannot read the configuration .*some.yaml: .*it is a (FIFO|directory)"):
        load(path)


def test_yaml_that_is_no_utf8(path: Path) -> None:
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
def test_what_is_typed_cannot_run_anything(tmp_path: Path, tail: str) -> None:
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
def test_wrong_values(path: Path, name: str, value: str) -> None:
    section, _, leaf = name.rpartition(".")
    path.write_text(f"{section}: {{{leaf}: {value}}}" if section else f"{name}: {value}")
    for arguments in ((None, [f"--{name}", value]), (None, [f"--{leaf}={value}"]), (path, [])):
        with pytest.raises(UserError, match=name.replace(".", "[.]")) as caught:
            load(*arguments)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_every_number_has_a_range() -> None:
    numbers = {name for name, kind in config._leaves().items() if {int, float, list[int]} & {kind, *get_args(kind)}}
    elsewhere = {"data.num_validation", "model.alpha"}  # the data and the logit say
    assert numbers - elsewhere == set(config.RANGES)


@pytest.mark.parametrize("name", sorted(config.RANGES))
def test_a_number_beyond_its_range_is_named_with_the_range(name: str) -> None:
    allowed = config.RANGES[name]
    for number in (allowed.high * 2 + 1, allowed.low - 1, float("nan"), float("inf")):
        settings = Settings()
        section, leaf = config._place(settings, name)
        setattr(section, leaf, number)
        with pytest.raises(UserError) as caught:
            config._check_values(settings)
        assert str(caught.value) == f"{name} must be {allowed}, not {number}"


TEXTS = [name for name, kind in config._leaves().items() if str in (kind, *get_args(kind))]


@pytest.mark.parametrize("name", TEXTS)
def test_empty_text_is_refused(path: Path, name: str) -> None:
    section, _, leaf = name.rpartition(".")
    path.write_text(f"{section}: {{{leaf}: ''}}" if section else f"{name}: ''")
    for arguments in ((None, [f"--{name}", ""]), (path, [])):
        with pytest.raises(UserError, match=f"{name} is empty"):
            load(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", config.PATHS)
def test_paths_begin_at_home(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert getattr(*config._place(load(None, [f"--{name}", "~/there"]), name)) == str(tmp_path / "there")
    assert getattr(*config._place(load(None, [f"--{name}", "a/~"]), name)) == "a/~"
    with pytest.raises(UserError, match=f"{name}: cannot tell which directory ~nobody-here is.* path in full"):
        load(None, [f"--{name}", "~nobody-here/there"])


@pytest.mark.parametrize("name", sorted(config._leaves()))
def test_null_is_refused_where_it_means_nothing(path: Path, name: str) -> None:
    section, _, leaf = name.rpartition(".")
    path.write_text(f"{section}: {{{leaf}: null}}" if section else f"{name}: null")
    if type(None) in get_args(config._leaves()[name]):
        assert load(path) == Settings()
    else:
        with pytest.raises(UserError, match=name):
            load(path)


# --- there and back


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--prior [0.5,0.5] --channels 8 --steps 3 --learn_means false --scale sigmoid --alpha 1e-6 --spread 2",
        "--runs.name 2024-01-01 --runs.root 1_0 --pretrained .5e3",
        "--pretrained 7 --runs.name null --data.root ~/data --lr 1e-10 --max_steps 0 --ema 0",
        "--runs.name 1e-4 --pretrained true --runs.root 1.5e3 --compile --device cpu --labels_per_class 4",
    ],
)
def test_there_and_back(path: Path, words: str) -> None:
    settings = load(None, words.split())
    path.write_text(config.to_yaml(settings), encoding="utf-8")
    assert load(path) == settings


def test_names_in_other_scripts_there_and_back(path: Path) -> None:
    settings = Settings()
    settings.runs.name, settings.runs.root = "é: #ß 'x' \"y\"", "läufe/日本"
    path.write_text(config.to_yaml(settings), encoding="utf-8")
    assert load(path) == settings


def test_choices_are_the_keys_of_the_tables() -> None:
    from scnf.distributions.labels import LABEL_DRAWS
    from scnf.distributions.pixels import LIKELIHOODS
    from scnf.models.architectures import CONDITIONALS
    from scnf.models.variational_architectures import POSTERIORS
    from scnf.training.loop import OPTIMIZERS, SELECTORS
    from scnf.training.schedules import SCHEDULES
    from scnf.transforms import LINEAR

    train, model = get_type_hints(TrainSettings), get_type_hints(ModelSettings)

    def choices(kind: Any) -> list[str]:
        literal = next((part for part in get_args(kind) if part is not type(None) and get_args(part)), kind)
        return list(get_args(literal))

    assert choices(train["optimizer"]) == list(OPTIMIZERS)
    assert choices(train["schedule"]) == list(SCHEDULES)
    assert choices(train["select"]) == list(SELECTORS)
    assert choices(model["linear"]) == list(LINEAR)
    assert choices(model["conditional"]) == list(CONDITIONALS)
    assert choices(model["likelihood"]) == list(LIKELIHOODS)
    assert choices(model["labels"]) == ["enumerate", *LABEL_DRAWS]
    assert choices(model["posterior"]) == ["gaussian", *POSTERIORS]


def test_every_setting_is_documented() -> None:
    sections: list[Any] = [field.type for field in dataclasses.fields(Settings)]
    for kind in filter(dataclasses.is_dataclass, [Settings, *sections]):
        for field in dataclasses.fields(kind):
            assert f"\n        {field.name}: " in str(kind.__doc__)


def test_every_model_setting_is_an_argument_of_some_recipe() -> None:
    from scnf.models.architectures import CONDITIONALS, FLOWS
    from scnf.models.variational_architectures import VARIATIONAL

    taken: set[str] = set()
    for recipe, kind in itertools.product(FLOWS.values(), CONDITIONALS):
        taken |= set(recipe.resolve({"conditional": kind}))
    for variational in VARIATIONAL.values():
        taken |= set(variational.resolve({}))
    assert {field.name for field in dataclasses.fields(ModelSettings)} - {"recipe", "prior"} == taken


# --- finding a file


def test_config_as_given_then_in_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = config.find_config("digits.yaml")
    assert os.path.isabs(shipped) and shipped.parent.name == "configs"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.yaml").touch()
    assert config.find_config("digits.yaml") == Path("configs/digits.yaml")
    (tmp_path / "digits.yaml").touch()
    assert config.find_config("digits.yaml") == Path("digits.yaml")
    assert config.find_config(str(tmp_path / "digits.yaml")) == tmp_path / "digits.yaml"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("digit.yaml", "did you mean digits.yaml"), ("qqq", "there are c"), ("confg.yaml", "did you mean config.yaml")],
)
def test_config_that_is_not_there(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"there is no configuration '{name}'.*{hint}"):
        config.find_config(name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "gumble"], "model.labels must be one of enumerate, gumbel, .*; not 'gumble'"),
        (["--optimizer", "adm"], "train.optimizer must be one of adam, adamw, adamax; not 'adm'"),
        (["--latent", "wide"], r"model.latent must be a whole number or a list such as \[64, 32\]; not 'wide'"),
        (["--epochs", "1.5"], "train.epochs must be a whole number; not '1.5'"),
        (["--lr", "high"], "train.lr must be a number; not 'high'"),
        (["--balanced", "perhaps"], "data.balanced must be true or false; not 'perhaps'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_in_words(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.load(None, words)


@pytest.mark.parametrize("text", ["#1", "&a", "---", "!x", "[1", "5", "1e3", "true", "a: b"])
def test_text_that_yaml_reads_otherwise_is_text(text: str, tmp_path: Path) -> None:
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
def test_values_that_are_none_of_their_type_end_in_a_message(line: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(line)
    with pytest.raises(UserError):
        load(tmp_path / "x.yaml")
