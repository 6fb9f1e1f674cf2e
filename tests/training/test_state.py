"""What a resume takes: a whole checkpoint of this very run, and nothing else; and what it says of another machine."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from scnf import UNLABELLED
from scnf.data.batches import Batches
from scnf.errors import UserError
from scnf.models.base import JointModel
from scnf.objectives import Objective
from scnf.recipes import ScnfHybrid, build
from scnf.runs import Run
from scnf.settings import Settings, check_fixed_settings, fixed_settings
from scnf.settings.schema import MAY_CHANGE, leaves
from scnf.training import loop
from scnf.training.averaging import averaged_model
from scnf.training.checkpoint import flatten_optimizer, load_tensors, save_tensors
from scnf.training.state import Binding, Progress, State, load_checkpoint, restore

STEPS, MANY = 3, 2**60
TYPES = [torch.float64, torch.float32, torch.float16, torch.float8_e4m3fn, torch.int64, torch.int32, torch.bool]


class Training:
    """A small training with everything that a checkpoint may hold, stopped within its second epoch."""

    def __init__(self, path: Path, optimizer: str = "adam") -> None:
        self.run, self.optimizer = Run(path), optimizer
        self.run.write_json("env.json", {"key": "a" * 32})
        y = torch.full((40,), UNLABELLED)
        y[:4] = torch.tensor([0, 0, 1, 1])
        x = torch.randint(0, 17, (40, 1, 4, 4), dtype=torch.uint8)
        self.batches = Batches(x, y, 15, 0.2, 0, 17)
        assert self.batches.steps_per_epoch == STEPS
        self.binding = Binding("a" * 32, "split", {"train.batch_size": 15}, {"threads": torch.get_num_threads()})
        model, moved = self.parts()
        model.initialize(*next(self.batches.epoch(0))[:2])
        self.train(model, moved, max_steps=STEPS)
        averaged, progress = averaged_model(model, 0.9), Progress(1, 1, STEPS + 1, 0.1, 1.0, 60, 0.0, 1)
        assert averaged is not None
        averaged.n_averaged.fill_(progress.total_step)
        sums = {"loss": torch.tensor(1.5), "grad_norm": torch.tensor(2.5), "labelled_nll": torch.tensor(3.5)}
        guesses = torch.arange(40) % 3 - 1
        State(model, moved, averaged, progress, sums, guesses).save(self.run, self.binding)
        self.path, self.best = self.run.checkpoint("last"), self.run.checkpoint("best")
        self.tensors, self.metadata = load_tensors(self.path)
        self.model, self.fresh = self.parts()

    def parts(self) -> tuple[JointModel, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = build("classifier", (1, 4, 4), 2, hidden=4, layers=1, norm="batch")  # it has buffers, of two types
        return model, loop.OPTIMIZERS[self.optimizer](model.parameters(), lr=0.01)

    def train(self, model: JointModel, optimizer: torch.optim.Optimizer, **options: Any) -> Progress:
        return loop.train(
            State(model, optimizer, averaged_model(model, 0.9)),
            Objective(classifier_weight=1.0),
            self.batches,
            self.run,
            loop.Plan(epochs=2, ema=0.9, **options),
            evaluate=lambda kept: {"accuracy": 0.0, "nll": 0.0, "ece": 0.0},
            binding=self.binding,
            log=lambda line: None,
        )

    def restored(self, tensors: dict[str, Tensor] | None = None) -> State:
        """What a resume starts from, with the checkpoint's tensors or others."""
        kept = load_checkpoint(self.run)
        kept = kept if tensors is None else kept._replace(tensors=tensors)
        return restore(kept, self.model, self.fresh, self.batches, self.run, 0.9, "split", guesses=True)

    def refused(self, tensors: dict[str, Tensor] | None = None) -> str:
        """The message with which a resume ends; it has changed nothing."""
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        table, generator = (self.run.path / "metrics.csv").read_bytes(), torch.get_rng_state()
        with pytest.raises(UserError) as caught:
            self.restored(tensors)
        assert all(torch.equal(value, before[name]) for name, value in self.model.state_dict().items())
        assert not self.fresh.state and torch.equal(torch.get_rng_state(), generator)
        assert (self.run.path / "metrics.csv").read_bytes() == table
        return str(caught.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Training:
    return Training(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def adam(trained: Training) -> Iterator[Training]:
    """The training with Adam, whose files a test may change."""
    files = {path: path.read_bytes() for path in trained.run.path.rglob("*") if path.is_file()}
    trained.model, trained.fresh = trained.parts()
    yield trained
    for path, content in files.items():
        path.write_bytes(content)


@pytest.mark.parametrize("optimizer", loop.OPTIMIZERS)
def test_checkpoint_restores_progress_guesses_sums_model_and_optimizer(tmp_path: Path, optimizer: str) -> None:
    training = Training(tmp_path / "run", optimizer)
    restart = training.restored()
    assert (restart.progress.epoch, restart.progress.step, restart.progress.total_step) == (1, 1, STEPS + 1)
    assert restart.guesses is not None and restart.guesses.equal(training.tensors["guesses"])
    sums = {name: float(value) for name, value in restart.sums.items()}
    assert sums == {"loss": 1.5, "grad_norm": 2.5, "labelled_nll": 3.5}
    state = {f"model.{name}": value for name, value in training.model.state_dict().items()}
    state |= {f"optimizer.{name}": value for name, value in flatten_optimizer(training.fresh).items()}
    assert len(state) > 15 and all(value.equal(training.tensors[name]) for name, value in state.items())


def test_checkpoint_with_missing_or_extra_tensors_is_refused(adam: Training) -> None:
    for name in adam.tensors.keys() - {"sums.labelled_nll", "rng.cuda"}:  # which metrics there are is not known before
        others = {key: value for key, value in adam.tensors.items() if key != name}
        assert f"{name} [" in adam.refused(others)
    assert "more is not in the model" in adam.refused({**adam.tensors, "more": torch.ones(1)})
    tensors = {name: value for name, value in adam.tensors.items() if not name.startswith("optimizer.")}
    assert "optimizer.0.step [] is missing" in adam.refused(tensors)


def test_checkpoint_tensors_of_other_shape_or_dtype_or_not_finite_are_refused(adam: Training) -> None:
    kinds = {(name.split(".")[0], name.split(".")[-1], value.dtype): name for name, value in adam.tensors.items()}
    assert len(kinds) > 15
    for name in set(kinds.values()) - {"rng.cuda"}:
        value = adam.tensors[name]
        changed = [value.unsqueeze(0)]
        if name != "sums.labelled_nll":
            changed += [value.to(kind) for kind in TYPES if kind != value.dtype]
        if value.is_floating_point():
            changed += [torch.full_like(value, number) for number in (math.nan, math.inf, -math.inf)]
        for other in changed:
            assert f"does not fit this run: {name} " in adam.refused({**adam.tensors, name: other}), other.dtype


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optimizer.0.step", torch.tensor(5.0), "optimizer.0.step is 5 after 4 steps"),
        ("optimizer.0.step", torch.tensor(-1.0), "optimizer.0.step is -1"),
        ("ema.n_averaged", torch.tensor(0), "ema.n_averaged is 0 after 4 steps"),
        ("guesses", torch.full((40,), 2), "guesses lie between 2 and 2, and there are 2 classes"),
        ("guesses", torch.full((40,), -100), "guesses lie between -100 and -100"),
        ("rng.cpu", torch.zeros(5056, dtype=torch.uint8), "rng.cpu is no state"),
    ],
)
def test_checkpoint_with_impossible_values_is_refused(adam: Training, name: str, value: Tensor, message: str) -> None:
    assert message in adam.refused({**adam.tensors, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("epoch", "step", "total_step", "images", "best_epoch") for value in (-1, MANY)],
        *[(name, value) for name in ("epoch", "step", "total_step") for value in (5, 1.5, True, "1", None, [])],
        *[(name, value) for name in ("minutes", "train_seconds") for value in (-1.0, math.nan, math.inf, "1", None)],
        *[("best_score", value) for value in ("nan", "?", None, [])],
        ("best_epoch", 3),
        ("images", 3),
        *[("run", value) for value in ("b" * 32, "", None, 3)],
        *[("split", value) for value in ("another", "", None)],
        *[("settings", value) for value in (None, [], "x")],
        *[("machine", value) for value in (None, [], "x")],
        ("more", 1),
    ],
    ids=str,
)
def test_checkpoint_with_impossible_counts_is_refused(adam: Training, name: str, value: Any) -> None:
    save_tensors(adam.path, adam.tensors, {**adam.metadata, name: value})
    assert "does not fit this run" in adam.refused() or "by another version" in adam.refused()


def test_checkpoint_header_with_missing_or_changed_entries_is_refused(adam: Training) -> None:
    header = json.loads(json.loads(adam.path.read_bytes()[8:].split(b'}"}')[0] + b'}"}}')["__metadata__"]["scnf"])
    assert {"sha256", *adam.metadata} == set(header)
    for name in header:
        others = {key: value for key, value in header.items() if key != name}
        adam.path.write_bytes(save(adam.tensors, metadata={"scnf": json.dumps(others)}))
        assert "has no checksum" in adam.refused() or "is damaged, or was changed" in adam.refused()
        for value in (header[name] * 2 if not isinstance(header[name], dict) else {"x": 1}, None, 7, "x", [], {}):
            if value != header[name]:
                adam.path.write_bytes(save(adam.tensors, metadata={"scnf": json.dumps({**header, name: value})}))
                assert "is damaged, or was changed" in adam.refused() or "has no checksum" in adam.refused()
        save_tensors(adam.path, adam.tensors, {key: value for key, value in others.items() if key != "sha256"})
        if name != "sha256":
            assert "by another version" in adam.refused()


def test_missing_checkpoint_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoint to resume from"):
        load_checkpoint(Run(tmp_path))


def test_best_weights_are_checked_before_training_goes_on(adam: Training) -> None:
    tensors, about = load_tensors(adam.best)
    cases: list[tuple[dict[str, Tensor], dict[str, Any], str]] = [
        ({**tensors, "more": torch.ones(1)}, about, "more is not in the model"),
        (
            {
                name: torch.full_like(value, math.nan) if value.is_floating_point() else value
                for name, value in tensors.items()
            },
            about,
            "NaN",
        ),
        (dict(list(tensors.items())[1:]), about, "is missing"),
        (tensors, {**about, "run": "b" * 32}, "belongs to another run"),
        (tensors, {**about, "epoch": 3}, "it is of epoch 3"),
        (tensors, {**about, "epoch": "?"}, "it is of epoch ?"),
        (tensors, {**about, "score": "0.5"}, "it is of epoch 1"),
        (tensors, {}, "belongs to another run"),
    ]
    for changed, header, message in cases:
        save_tensors(adam.best, changed, header)
        assert message in adam.refused()
    adam.best.unlink()
    assert "the weights of epoch 1, the best so far" in adam.refused()


def test_best_weights_newer_than_the_checkpoint_stay_the_best(adam: Training) -> None:
    tensors, about = load_tensors(adam.best)
    save_tensors(adam.best, tensors, {**about, "epoch": 2, "score": "0.75"})  # a process died before the checkpoint
    progress = adam.restored().progress
    assert (progress.epoch, progress.best_epoch, progress.best_score) == (1, 2, 0.75)


def test_weight_average_counts_its_steps(adam: Training) -> None:
    model, optimizer = adam.parts()
    adam.train(model, optimizer)
    kept = load_checkpoint(adam.run)
    assert int(kept.tensors["ema.n_averaged"]) == kept.progress.total_step == 2 * STEPS


# --- which settings a resume may change


def test_changeable_settings_exist_and_exclude_those_that_alter_training() -> None:
    assert set(leaves(ScnfHybrid)) > MAY_CHANGE
    kept = {"train.batch_size", "train.passes", "data.labelled_share", "data.augment", "train.ema", "seed"}
    assert not kept & MAY_CHANGE


def test_lasting_setting_that_changed_is_refused_by_name() -> None:
    settings = Settings()
    before = json.loads(json.dumps(fixed_settings(settings)))
    check_fixed_settings(before, settings, Path("logs/1"))
    for name in before:
        if name in ("format", "model.recipe"):
            continue
        with pytest.raises(UserError, match=rf"{name} is 7 in it, not .*--config logs/1/config.yaml .*--{name} "):
            check_fixed_settings({**before, name: 7}, settings, Path("logs/1"))
    for name in MAY_CHANGE:
        check_fixed_settings({**before, name: 7}, settings, Path("logs/1"))


def test_setting_newer_than_the_checkpoint_stays_at_its_default() -> None:
    settings = Settings()
    before = fixed_settings(settings)
    del before["train.passes"]
    check_fixed_settings(before, settings, Path("logs/1"))
    settings.train.passes = 2
    with pytest.raises(UserError, match=r"train.passes is 1 in it, not 2"):
        check_fixed_settings(before, settings, Path("logs/1"))


# --- by the command


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Run:
    """The finished run as number 1 in logs/ of the test's directory."""
    shutil.copytree(finished, tmp_path / "logs" / finished.name)
    return Run(tmp_path / "logs" / finished.name)


def test_checkpoint_of_another_run_is_refused_and_nothing_written(
    digits: Callable[..., Any], scnf: Callable[..., Any], copied: Run, last_run: Callable[[], Run]
) -> None:
    assert digits("--max_steps 25").code == 0
    other = last_run()
    for name, message in (("last", "belongs to another run"), ("best", "belongs to another run")):
        kept = copied.checkpoint(name).read_bytes()
        shutil.copy(other.checkpoint(name), copied.checkpoint(name))
        before = {path: path.read_bytes() for path in copied.path.rglob("*") if path.is_file()}
        outcome = scnf("train --resume 1 --max_steps 55")
        assert outcome.code == 2 and outcome.err.count("\n") == 1 and message in outcome.err
        assert {path: path.read_bytes() for path in copied.path.rglob("*") if path.is_file()} == before
        copied.checkpoint(name).write_bytes(kept)
    assert scnf("train --resume 1 --max_steps 55").code == 0


def test_run_from_before_checkpoints_were_bound_is_refused(scnf: Callable[..., Any], copied: Run) -> None:
    tensors, metadata = load_tensors(copied.checkpoint("last"))
    old = {name: value for name, value in metadata.items() if name not in ("run", "split", "settings", "machine")}
    copied.checkpoint("last").write_bytes(save(tensors, metadata={"scnf": json.dumps(old)}))
    outcome = scnf("train --resume 1")
    assert outcome.code == 2 and "has no checksum" in outcome.err and "--pretrained" in outcome.err
    about = copied.read_json("env.json")
    del about["key"]
    copied.write_json("env.json", about)
    save_tensors(copied.checkpoint("last"), tensors, metadata)
    assert "belongs to another run" in scnf("train --resume 1").err


def test_config_edited_since_the_checkpoint_is_refused(scnf: Callable[..., Any], copied: Run) -> None:
    text = (copied.path / "config.yaml").read_text()
    (copied.path / "config.yaml").write_text(text.replace("batch_size: 64", "batch_size: 32"))
    assert "train.batch_size is 64 in it, not 32" in scnf("train --resume 1 --max_steps 55").err


def test_resume_notes_changes_that_keep_it_from_the_same_bits(scnf: Callable[..., Any], copied: Run) -> None:
    assert "note:" not in scnf("train --resume 1 --max_steps 51").out
    outcome = scnf("train --resume 1 --max_steps 52 --reversible --threads 2")
    note = "note: threads from 1 to 2, reversible from off to on: the end is not bit for bit that without a stop"
    assert outcome.code == 0 and note in outcome.out.splitlines()
    assert load_tensors(copied.checkpoint("last"))[1]["machine"]["threads"] == 2
    assert "note: threads from 2 to 1, reversible" not in scnf("train --resume 1 --max_steps 53").out


def test_weights_are_refused_with_settings_of_another_model(
    scnf: Callable[..., Any], digits: Callable[..., Any], copied: Run
) -> None:
    message = "error: model.scale is symmetric in {}, not sigmoid: with it the weights make another model"
    for command in ("evaluate 1", "sample 1", "compare 1"):
        outcome = scnf(command, "--model.scale sigmoid")
        assert outcome.code == 2 and message.format(f"logs/{copied.path.name}") in outcome.err
    for words in ("", "--adapt"):
        outcome = digits("--epochs 0 --model.scale sigmoid --pretrained", copied.path, words)
        assert outcome.code == 2 and message.format(copied.path) in outcome.err
    assert scnf("evaluate 1 --model.scale symmetric --class_chunk 5").code == 0
    outcome = digits("--epochs 0 --prior empirical --pretrained", copied.path)
    assert outcome.code == 2 and "model.prior is uniform" in outcome.err
    for words in ("--prior learned", "--prior empirical --adapt"):  # these start from the prior of the weights, or anew
        assert digits("--epochs 0", words, "--pretrained", copied.path).code == 0


def test_weights_with_nan_or_another_dtype_are_refused_by_every_command(
    scnf: Callable[..., Any], digits: Callable[..., Any], copied: Run
) -> None:
    tensors, metadata = load_tensors(copied.weights)
    name = next(name for name in tensors if name.startswith("transform.") and tensors[name].dtype == torch.float32)
    words = ["evaluate 1", "sample 1", "compare 1", "train --config digits.yaml --pretrained 1"]
    before = set((copied.path.parent).iterdir())
    for changed, message in (
        (torch.full_like(tensors[name], math.nan), f"{name} holds NaN or infinity"),
        (tensors[name].double(), f"{name} is float64 in the file and float32 in the model"),
    ):
        save_tensors(copied.weights, {**tensors, name: changed}, metadata)
        for command in words:
            run = digits if command.startswith("train") else scnf
            outcome = run(command.removeprefix("train --config digits.yaml "))
            assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1, command
        assert message in digits("--adapt --pretrained 1 --data_seed 1").err
    assert set((copied.path.parent).iterdir()) == before


# --- starting from weights


def test_config_of_a_run_names_the_weights_it_started_from(
    digits: Callable[..., Any], scnf: Callable[..., Any], copied: Run, last_run: Callable[[], Run]
) -> None:
    assert digits("--max_steps 2 --pretrained last").code == 0
    first = last_run()
    config_file = first.path / "config.yaml"
    assert f"pretrained: {copied.weights.relative_to(Path.cwd())}#sha256=" in config_file.read_text()
    assert scnf("train --resume last --max_steps 3").code == 0
    assert scnf("train --config", config_file, "--max_steps 3").code == 0  # `last` is another run by now
    again = last_run()
    assert again.id == 3 and again.weights.read_bytes() != copied.weights.read_bytes()
    loaded = [load_tensors(run.checkpoint("last"))[1]["settings"]["pretrained"] for run in (first, again)]
    assert loaded[0] == loaded[1]
    copied.weights.write_bytes(first.weights.read_bytes())
    outcome = scnf("train --config", config_file)
    assert outcome.code == 2 and "is not the file that these settings were run with" in outcome.err
    assert scnf("train --config", config_file, "--pretrained", copied.weights).code == 0


def test_config_of_a_run_names_the_file_of_shipped_weights(
    digits: Callable[..., Any], shipped: Path, last_run: Callable[[], Run]
) -> None:
    assert digits("--epochs 0 --pretrained").code == 0
    assert (
        "pretrained: pretrained/scnf-digits/model.safetensors#sha256=" in (last_run().path / "config.yaml").read_text()
    )
