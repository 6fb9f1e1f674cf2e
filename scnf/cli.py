"""The commands: scnf train | evaluate | sample | runs | compare."""

import argparse
import hashlib
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from scnf import __version__, config, interrupt, runs, shipped, streams
from scnf.config import SHIPPED, Range, Settings
from scnf.errors import UserError
from scnf.failures import explain, traceback_in
from scnf.files import expand, write_bytes
from scnf.runs import Run

if TYPE_CHECKING:
    from scnf.threads import Threads

USAGE = """usage: scnf COMMAND ...

  train      train a model: scnf train --config config.yaml [--section.key value ...]
             [--pretrained [PATH]] [--resume RUN]
  evaluate   figures of a run or of weights: scnf evaluate RUN|PATH
  sample     draw images of a class: scnf sample RUN|PATH --label 3 --num 64 --out grid.png
  runs       a table of all runs: scnf runs [--sort accuracy] [--where recipe=scnf-fast]; scnf runs show ID
  compare    models side by side on one split: scnf compare RUN RUN ... [--k 50] [--split test]

RUN is an id, a directory or `last`. PATH is also a .safetensors file, the name of weights that ship, such as
scnf-digits, or `shipped` for the main job's weights.
scnf COMMAND --help tells more. scnf --version prints the version."""


M1_COPY = "m1"
"""Directory in a run of M1+M2 with what is needed to build its M1 again."""
_PINNED = "#sha256="
"""Between the path of weights and their check sum, in the settings of a run that started from them."""
_ADAPTED = 1_000_003
"""What is added to the seed where a flow is adapted: it may have had the same, and drawn the same class means."""


@streams.guarded()
def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the console script `scnf`.

    Args:
        argv: the words after the program's name; those of this process by default.

    Returns:
        the exit code, which is 0 on success and 1 for a bug. It is 2 for something that the user can put right,
        such as standard output that is full or closed. It is 128 + the signal after one of `scnf.interrupt.WATCHED`,
        and after SIGPIPE, when whoever reads the output has gone. A training that has begun goes on without its output.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {"train": train, "evaluate": evaluate, "sample": sample, "runs": list_runs, "compare": compare}
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("scnf").setLevel(logging.INFO)
    try:
        with interrupt.watch():
            try:
                for word in words:
                    _check_bytes(word)
                if not words or words[0] in ("-h", "--help"):
                    print(USAGE)
                    return 0 if words else 2
                if words[0] == "--version":
                    print(f"scnf {__version__}")
                    return 0
                if words[0] not in commands:
                    raise UserError(f"there is no command {words[0]!r}: choose one of {', '.join(commands)}")
                return commands[words[0]](words[1:])
            finally:  # also where a parser has exited after its help
                sys.stdout.flush()
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        what, how = " ".join(["scnf", *words[:1]]), "; ".join(getattr(error, "__notes__", ["type the same again"]))
        streams.complain(f"{what} was interrupted by {signal.Signals(number).name}: {how}")
        return 128 + number
    except Exception as error:
        told = explain(error)
        theirs = isinstance(told, UserError)
        streams.complain(f"error: {told}", keep="" if theirs else "\n")  # a bug's traceback may have found no file
        return 2 if theirs else 1


class _Workbench:
    """Data, split and model of some settings: what every command that touches a model starts from.

    Args:
        settings: all of them.
        near: the run directory, where it may hold the M1 of an M1+M2.
    """

    def __init__(self, settings: Settings, near: Path | None = None) -> None:
        import torch

        from scnf.data.labels import draw_split
        from scnf.data.sources import load
        from scnf.distributions import make_prior
        from scnf.models.architectures import build
        from scnf.threads import one_thread

        self.settings = settings
        self.m1_files: dict[str, Path] = {}
        self.device = _device(settings.device)
        data = settings.data
        self.dataset = load(data.name, data.root)
        classes = self.dataset.num_classes
        data.resolve_labels(classes)
        self.split = draw_split(
            self.dataset.train_y,
            classes,
            data.num_labels,
            data.num_validation,
            data.data_seed,
            data.balanced,
        )
        self.shape = tuple(self.dataset.train_x.shape[1:])
        self.visible = self.split.visible(self.dataset.train_y)
        torch.manual_seed(settings.seed + (_ADAPTED if settings.train.adapt else 0))
        try:
            prior = make_prior(settings.model.prior, classes, self.visible)
            parts = {"m1": self._m1(settings.model.m1, near)} if settings.model.m1 else {}
            recipe, levels = settings.model.recipe, self.dataset.levels
            with one_thread():
                self.model = build(recipe, self.shape, classes, prior, levels, **settings.model.arguments(), **parts)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.model.to(self.device)

    def _m1(self, ref: str, near: Path | None) -> Any:
        """The trained M1 that `model.m1` names; a run of M1+M2 keeps a copy of it, which goes before."""
        from scnf.models.architectures import build
        from scnf.training.checkpoint import load_tensors, load_weights

        if ref == SHIPPED:
            raise UserError("no M1 ships: train one (--config mnist_m1.yaml), then set model.m1 to its run")
        copy = None if near is None else near / M1_COPY
        directory, weights = _find_weights(str(copy) if copy and copy.is_dir() else ref, self.settings)
        if not (directory / "config.yaml").is_file():
            raise UserError(f"{directory} holds no config.yaml, which says what kind of M1 the weights belong to")
        trained, wanted = config.load(directory / "config.yaml"), self.settings.data.name
        if trained.model.recipe != "m1":
            raise UserError(
                f"{directory} was trained with the recipe {trained.model.recipe}: M1+M2 stands on the recipe m1, which "
                "has one Gaussian latent. Set model.m1 to a run of that"
            )
        if trained.data.name != wanted:
            raise UserError(
                f"the M1 in {directory} was trained on {trained.data.name}, not on {wanted}: train one on {wanted}, or "
                f"set data.name to {trained.data.name}"
            )
        classes, levels = self.dataset.num_classes, self.dataset.levels
        m1 = build(trained.model.recipe, self.shape, classes, None, levels, **trained.model.arguments())
        load_weights(m1, load_tensors(weights)[0], weights)
        self.m1_files = {"config.yaml": directory / "config.yaml", "model.safetensors": weights}
        if near is None:
            print(f"M1: {weights}")
            _note_other_split(directory, weights, self)
        return m1

    def load_weights(self, path: Path, only_shared: bool = False) -> dict[str, Any]:
        """Load weights into the model, or those of a flow's shared part alone; what the file says of them.

        Raises:
            UserError: the weights do not fit.
        """
        from scnf.training.checkpoint import load_tensors, load_weights

        tensors, about = load_tensors(path)
        if only_shared:
            own = self.model.state_dict()
            apart = tuple(f"{name}." for name in ("conditional", "prior"))
            tensors = {name: value for name, value in tensors.items() if not name.startswith(apart)}
            tensors |= {name: value for name, value in own.items() if name.startswith(apart)}
        load_weights(self.model, tensors, path)
        return about

    @property
    def autocast(self) -> bool:
        """Whether networks train in bf16."""
        from scnf.machine import has_bfloat16

        return self.settings.train.autocast and has_bfloat16(self.device)

    def settle_threads(self, begin: Callable[[], Callable[[], Any]], kept: int | None = None) -> "Threads | None":
        """Set the number of threads: what `threads` says, else what a run had before, else by a trial.

        Args:
            begin: gives a piece of the work to time.
            kept: the number of a run that is resumed, so that its bits stay the same.

        Returns:
            what may change the number later, None where it is not to change.
        """
        import torch

        from scnf.threads import Threads

        if self.settings.threads != "auto":
            torch.set_num_threads(self.settings.threads)
        if self.settings.threads != "auto" or self.device.type != "cpu":
            return None
        threads = Threads(begin, _say)
        if kept is None:
            threads.choose()
        else:
            torch.set_num_threads(min(kept, torch.get_num_threads()))
        return threads

    def evaluation(self) -> Callable[[], Any]:
        """A small piece of an evaluation, which leaves nothing behind."""
        import torch

        from scnf.batch import Batch
        from scnf.training.metrics import noisy_batches

        model = self.model.eval()
        x = next(noisy_batches(self.dataset.train_x[:64], self.dataset.levels, 64, seed=0)).to(self.device)

        def work() -> None:
            with torch.no_grad(), torch.random.fork_rng([]):
                model(Batch.unlabelled(x))

        return work

    def arithmetic(self) -> dict[str, Any]:
        """What the last bits of a training hang on, beside the settings that stay for the whole of a run."""
        import torch

        from scnf.machine import description
        from scnf.native import library

        train, kernels = self.settings.train, library() if self.device.type == "cpu" else None
        return {
            **{name: value for name, value in description(self.device).items() if name != "cpus"},
            "torch": torch.__version__,
            "kernels": "off" if kernels is None else kernels.key,
            "bf16": self.autocast,
            "compile": train.compile,
            "reversible": train.reversible,
            "class_chunk": self.settings.model.class_chunk or "all",
        }

    def batches(self) -> Any:
        """The training rows, on the device, with hidden labels gone; UserError where there are none to propagate."""
        from scnf.data.batches import Batches

        settings, rows = self.settings, self.split.train
        if settings.objective.propagations and self.dataset.levels is None:
            raise UserError("labels walk over cosines, which say little about points: set objective.propagations to 0")
        unseen = set(range(self.dataset.num_classes)) - set(self.visible.unique().tolist())
        if unseen and settings.objective.propagations:
            raise UserError(
                f"no row of class {', '.join(map(str, sorted(unseen)))} has a label, and so none would be propagated: "
                "set data.balanced to true, raise data.num_labels, or set objective.propagations to 0"
            )
        x, y = self.dataset.train_x[rows].to(self.device), self.visible[rows].to(self.device)
        share = settings.data.labelled_share
        views = settings.objective.consistency_weight > 0
        size, augment, passes = settings.train.batch_size, settings.data.augment, settings.train.passes
        in_place = self.model.likelihood_of == "labels"
        batches = Batches(x, y, size, share, settings.seed, self.dataset.levels, augment, views, passes, in_place)
        if augment and not (views or in_place or settings.objective.classifier_weight or settings.train.eval_views):
            raise UserError(
                "moved images count in cross-entropies alone, and there are none: set data.augment to 0, or "
                "objective.classifier_weight or objective.consistency_weight above 0"
            )
        return batches

    def propagation(self, batches: Any) -> Any:
        """What guesses labels in a training, see :class:`scnf.propagation.strategy.Propagation`; None without it."""
        from scnf.propagation.strategy import Propagation

        objective, train = self.settings.objective, self.settings.train
        if not objective.propagations:
            return None
        return Propagation(
            batches.x,
            batches.y,
            batches.levels,
            objective.propagations,
            train.epochs,
            objective.neighbours,
            objective.self_training_networks,
            batches.augment,
            self.autocast,
            fixed=train.adapt,
            batch_size=train.eval_batch_size,
            say=_say,
        )

    def check_views(self) -> None:
        """UserError where `train.eval_views` asks for versions of rows that nothing moves."""
        if self.settings.train.eval_views and self.dataset.levels is None:
            raise UserError("points have no views: set train.eval_views to 0")
        if self.settings.train.eval_views and not self.settings.data.augment:
            raise UserError(
                "views are moved versions of each image, and data.augment, which moves them, is 0: raise it, or set "
                "train.eval_views to 0 (figures are of several draws of the noise anyway)"
            )

    def figures(self, split: str, model: Any = None) -> dict[str, float]:
        """Figures on "validation" or "test" of the workbench's model; of another from one draw, without views.

        Those of the workbench's model are reported: UserError where one is NaN. A training goes on from such a figure.
        """
        from scnf.training.metrics import NOISE_DRAWS, check_figures, evaluate

        data, rows = self.dataset, self.split.validation
        x, y = (data.test_x, data.test_y) if split == "test" else (data.train_x[rows], data.train_y[rows])
        train = self.settings.train
        figures = evaluate(
            self.model if model is None else model,
            x.to(self.device),
            y.to(self.device),
            data.levels,
            train.eval_batch_size,
            draws=NOISE_DRAWS if model is None else 1,
            views=train.eval_views if model is None else 0,
            augment=self.settings.data.augment,
        )
        if model is None:
            check_figures(figures, split)
        return figures


def train(words: Sequence[str]) -> int:
    """`scnf train`: train, evaluate once on test, leave everything in a run directory, which is locked meanwhile."""
    with ExitStack() as held:
        return _train_locked(words, held)


def _train_locked(words: Sequence[str], held: ExitStack) -> int:
    from scnf.machine import check_compiler, description
    from scnf.models.flow import SemiConditionalFlow
    from scnf.training.state import Checkpoint, load_checkpoint

    own, overrides = _take(words, "--config", "--resume")
    if own["--resume"] and own["--config"]:
        raise UserError("--resume goes on with the settings of its run: leave --config out")
    run: Run | None = None
    kept: Checkpoint | None = None
    if own["--resume"]:
        run = Run.find(Path(config.load(None, overrides).runs.root), own["--resume"])
        held.enter_context(run.locked())
        if not (run.path / "config.yaml").is_file():
            raise UserError(f"{run.path} cannot go on, for its config.yaml is missing: restore it, or start a new run")
        settings = config.load(run.path / "config.yaml", overrides)
        kept = load_checkpoint(run)
        config.check_lasting(kept.binding.settings, settings, run.path)
    else:
        settings = config.load(config.find_config(own["--config"] or "config.yaml"), overrides)
    streams.go_on_without()
    bench = _Workbench(settings, run.path if run is not None else None)
    bench.check_views()
    if settings.train.adapt and not isinstance(bench.model, SemiConditionalFlow):
        raise UserError(f"the recipe {settings.model.recipe} has no shared flow to adapt: set train.adapt to false")
    batches = bench.batches()
    if settings.train.compile:
        check_compiler(bench.device)
    if run is not None:
        _check_split(run, bench)
    elif settings.pretrained:
        directory, weights = _find_weights(settings.pretrained, settings)
        if (directory / "config.yaml").is_file():
            _check_model(config.load(directory / "config.yaml"), settings, directory)
        bench.load_weights(weights, only_shared=settings.train.adapt)
        _note_other_split(directory, weights, bench)
        settings.pretrained = f"{weights}{_PINNED}{_sha256(weights)}"  # whatever `last` is by then
    if run is None:
        run = Run.create(
            Path(settings.runs.root), settings.runs.name or f"{bench.dataset.name}-{settings.model.recipe}"
        )
        held.enter_context(run.locked())
    try:
        if kept is None:
            if bench.m1_files:
                settings.model.m1 = str(run.path / M1_COPY)  # which runs as it did, whatever `last` is by then
            run.write_text("config.yaml", config.to_yaml(settings))
            run.write_json("split.json", bench.split.to_json())
            about = {name: value for name, value in description(bench.device).items() if name != "threads"}
            run.write_json("env.json", runs.environment(sys.argv, about))  # how many threads, the training finds
            for name, source in bench.m1_files.items():
                write_bytes(run.path / M1_COPY / name, source.read_bytes())
        with traceback_in(run.path):
            return _train(run, bench, batches, kept)
    except KeyboardInterrupt as error:
        if run.checkpoint("last").is_file():
            error.add_note(f"go on with: scnf train --resume {run.path}")
        else:
            error.add_note(f"{run.path} had not come to its first checkpoint, and nothing can be resumed: start anew")
        raise
    finally:
        run.close()


def _train(run: Run, bench: _Workbench, batches: Any, kept: Any) -> int:
    """Train, from the checkpoint `kept` on if there is one, and finish the run."""
    import torch

    from scnf.data.batches import EncodedBatches
    from scnf.machine import FreedMemory
    from scnf.models.flow import OnLatents
    from scnf.objectives import Objective
    from scnf.training.averaging import averaged_model
    from scnf.training.loop import OPTIMIZERS, Plan
    from scnf.training.loop import train as train_model
    from scnf.training.state import Binding, State, restore
    from scnf.transforms import CompositeTransform

    settings, train = bench.settings, bench.settings.train
    memory = FreedMemory()
    torch.manual_seed(settings.seed)
    if bench.model.likelihood_of == "labels" and train.select == "bits_per_dim":
        raise UserError("a plain classifier knows no p(x): set train.select to accuracy or last")
    model: Any = bench.model
    if train.adapt:
        model = OnLatents(model)
    for module in bench.model.modules():
        if isinstance(module, CompositeTransform):
            module.reversible = train.reversible
    parameters = sum(parameter.numel() for parameter in bench.model.parameters())
    print(
        f"{run.path}: {settings.model.recipe} with {parameters:,} parameters on {bench.dataset.name}, "
        f"{len(batches.labelled)} labelled of {len(batches.x):,} training rows, {bench.device}",
        flush=True,
    )
    if batches.num_labelled == 0 and len(batches.labelled):
        print("note: no label is read, for data.labelled_share is 0", flush=True)
    chosen = settings.objective
    objective = Objective(**{each.name: getattr(chosen, each.name) for each in fields(Objective)})

    def figures(kept: Any) -> dict[str, float]:
        return bench.figures("validation", kept.on_inputs() if train.adapt else kept)

    plan = Plan(**{each.name: getattr(train, each.name) for each in fields(Plan)} | {"autocast": bench.autocast})
    steps = plan.steps(batches)
    optimizer = OPTIMIZERS[train.optimizer](
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=train.lr,
        weight_decay=train.weight_decay,
    )

    def begin() -> Callable[[], Any]:
        """A training step on a copy of the model, or a piece of an evaluation where no step is to come.

        So it is with `train.adapt` before the rows are encoded, which waits for the number of threads.
        """
        encoded = isinstance(batches, EncodedBatches)
        if not steps or encoded != train.adapt:
            return bench.evaluation()
        copied = deepcopy(model).train()
        with torch.random.fork_rng([]):
            batch = next(batches.epoch(0))

        def step() -> None:
            with torch.random.fork_rng([]):
                with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.autocast):
                    output = copied(batch)
                objective(output, batch, 0.0)[0].backward()

        return step

    # before any number is computed: bits hang on how many threads there are
    threads = bench.settle_threads(begin, None if kept is None else kept.binding.machine.get("threads"))
    binding = Binding(run.key, bench.split.sha256, config.lasting(settings), bench.arithmetic())
    if kept is not None:
        state = restore(kept, model, optimizer, batches, run, train.ema, binding.split, chosen.propagations > 0)
        found = run.read_json("summary.json") if (run.path / "summary.json").is_file() else None
        finished = isinstance(found, dict) and found.get("status") == "finished"
        made = all((run.path / name).is_file() for name in (run.weights.name, "curves.png"))
        left = steps - state.progress.total_step
        if left <= 0 and finished and made:
            print("it is finished: nothing is left to do, and the test split is not looked at again")
            return 0
        print(f"going on after epoch {state.progress.epoch}, step {state.progress.total_step}", flush=True)
        if other := kept.binding.differences(binding.machine):
            print(f"note: {', '.join(other)}: the end is not bit for bit that without a stop", flush=True)
        # only now: settings that the checkpoint does not fit must not stay behind
        run.write_text("config.yaml", config.to_yaml(settings))
        if left > 0:
            for name in ("summary.json", run.weights.name, "samples.png", "curves.png"):  # of an earlier end
                (run.path / name).unlink(missing_ok=True)
    encoding = time.perf_counter()
    if train.adapt:
        with torch.random.fork_rng([bench.device] if bench.device.type == "cuda" else []):  # on resume, the same again
            torch.manual_seed(settings.seed)
            copies = min(100, max(1, 10_000 // max(1, len(batches.labelled))))
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.autocast):
                batches = EncodedBatches(batches, model.on_inputs().eval().latent_rows, copies)
    encoding = (time.perf_counter() - encoding) / 60

    def after_step() -> None:
        memory()
        if threads is not None:
            threads()

    if kept is None:
        if train.adapt or not settings.pretrained:
            try:
                first = next(batches.epoch(0))
                model.initialize(first.x, first.y)
            except ValueError as error:
                raise UserError(str(error)) from error
        state = State(model, optimizer, averaged_model(model, train.ema))
    summary: dict[str, Any] = {"status": "failed", "parameters": parameters}
    try:
        progress = train_model(
            state,
            objective,
            batches,
            run,
            plan,
            figures,
            guess=bench.propagation(batches),
            binding=binding,
            say=_say,
            after_step=after_step,
        )
    except Exception:
        run.write_json("summary.json", summary)
        raise
    summary |= {
        "epochs": progress.epoch,
        "steps": progress.total_step,
        "minutes": round(encoding + progress.minutes, 3),
        "images_per_second": round(progress.images / progress.train_seconds, 1) if progress.train_seconds else None,
        "threads": torch.get_num_threads(),
        "peak_memory_mb": _peak_memory_mb(bench.device),
    }
    if progress.stopped_by is not None:
        run.write_json("summary.json", summary | {"status": "interrupted"})
        print(f"interrupted after step {progress.total_step}; go on with: scnf train --resume {run.path}")
        return 128 + progress.stopped_by
    _finish(run, bench, summary | {"status": "finished", "selected_epoch": progress.best_epoch})
    return 0


def _finish(run: Run, bench: _Workbench, summary: dict[str, Any]) -> None:
    """The kept weights, their figures (the one look at the test split), pictures, and where all that is."""
    from scnf.analysis import plots
    from scnf.analysis.samples import sample_picture
    from scnf.training.checkpoint import save_tensors
    from scnf.training.metrics import figures_text

    save_tensors(run.weights, bench.model.state_dict(), {"recipe": bench.settings.model.recipe})
    summary["validation"], summary["test"] = bench.figures("validation"), bench.figures("test")
    classes = list(range(bench.dataset.num_classes))
    if bench.model.likelihood_of != "labels":
        sample_picture(bench.model, run.path / "samples.png", classes, 10, bench.shape, bench.device)
    plots.curves(run.read_metrics(), run.path / "curves.png")
    run.write_json("summary.json", summary)  # the last file: with it, the run is whole
    for split in ("validation", "test"):
        print(f"{split:<10}  {figures_text(summary[split])}")
    rate = f", {summary['images_per_second']:.0f} images/s" if summary["images_per_second"] else ""
    kept = f"the weights of epoch {summary['selected_epoch']} are kept, " if summary["selected_epoch"] else ""
    minutes = summary["minutes"]
    spent = f"{minutes:.1f} minutes" if minutes >= 1 else f"{60 * minutes:.0f} seconds"
    cost = f"{spent}{rate}, " if summary["steps"] else ""
    memory = "" if summary["peak_memory_mb"] is None else f"{summary['peak_memory_mb']:.0f} MB at most; "
    print(f"{cost}{memory}{kept}all is in {run.path}")


def evaluate(words: Sequence[str]) -> int:
    """`scnf evaluate`: figures of a run or of weights, on validation and test."""
    from scnf.training.metrics import figures_text

    parser = _small_parser("evaluate", "Figures of a run, or of a directory or file of weights.")
    parser.add_argument("--split", choices=["validation", "test", "both"], default="both")
    options, overrides = parser.parse_known_args(words)
    bench = _bench_of(options.weights, options.logs, overrides)
    bench.check_views()
    splits = ["validation", "test"] if options.split == "both" else [options.split]
    for split in splits:
        print(f"{split:<10}  {figures_text(bench.figures(split))}")
    return 0


def sample(words: Sequence[str]) -> int:
    """`scnf sample`: a picture of samples, of one class or of all."""
    import torch

    from scnf.analysis.samples import sample_picture

    parser = _small_parser("sample", "Draw from a run, or from a directory or file of weights.")
    parser.add_argument("--label", type=int, help="the class to draw; all classes, a row each, by default")
    parser.add_argument("--num", type=_whole(1, 10_000), help="samples: 64 of one class, or 10 of each")
    parser.add_argument("--out", type=_path, default=Path("samples.png"), help="the PNG to write (samples.png)")
    parser.add_argument("--sample-seed", type=_whole(0, 2**63 - 1), default=0, help="decides the draw (0)")
    options, overrides = parser.parse_known_args(words)
    if options.out.suffix.lower() in (".jpg", ".jpeg", ".pdf", ".svg", ".webp", ".gif", ".bmp", ".tif", ".tiff"):
        raise UserError(f"samples are written as PNG: name the file {options.out.with_suffix('.png').name}")
    bench = _bench_of(options.weights, options.logs, overrides)
    classes = bench.dataset.num_classes
    if options.label is not None and not 0 <= options.label < classes:
        raise UserError(f"--label must lie between 0 and {classes - 1}, not at {options.label}")
    labels = list(range(classes)) if options.label is None else [options.label]
    torch.manual_seed(options.sample_seed)
    sample_picture(
        bench.model, options.out, labels, options.num or (10 if len(labels) > 1 else 64), bench.shape, bench.device
    )
    print(options.out)
    return 0


def list_runs(words: Sequence[str]) -> int:
    """`scnf runs`: a table of all runs, or one of them in full."""
    from scnf.analysis import overview

    parser = _Parser(prog="scnf runs", description="A table of all runs; `scnf runs show ID` for one.")
    parser.add_argument("show", nargs="*", type=expand, metavar="show RUN", help="one run in full")
    parser.add_argument("--sort", default="id", help=f"column to sort by: {', '.join(overview.COLUMNS)}")
    parser.add_argument("--reverse", action="store_true", help="largest first")
    parser.add_argument(
        "--where", action="append", default=[], help="recipe=scnf-fast, accuracy>0.9, ...; may be repeated"
    )
    _add_logs(parser)
    options = parser.parse_args(list(words))
    if not options.logs.is_dir() and (options.logs.exists() or options.logs != parser.get_default("logs")):
        raise UserError(f"there is no directory {options.logs}: name the one that holds the runs with --logs")
    if options.show:
        if options.show[0] != "show" or len(options.show) != 2:
            raise UserError("`scnf runs` lists all; `scnf runs show RUN` shows one")
        print(overview.describe(Run.find(options.logs, options.show[1])))
    else:
        print(overview.format_table(overview.list_runs(options.logs), options.sort, options.reverse, options.where))
    return 0


def compare(words: Sequence[str]) -> int:
    """`scnf compare`: exact and variational models side by side, on the same images."""
    from scnf.analysis import compare as comparison
    from scnf.training.metrics import NOISE_DRAWS

    parser = _Parser(
        prog="scnf compare",
        description="A table and a picture of models on one split: likelihood and its bounds, accuracy, speed.",
        epilog="Settings such as --data.root may follow.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", type=expand, metavar="RUN|PATH", help="as of `scnf evaluate`: id, directory, file, last"
    )
    parser.add_argument("--k", type=_whole(1, 10_000), default=50, help="importance samples of the tighter bound (50)")
    parser.add_argument("--split", choices=["validation", "test"], default="validation", help="(validation)")
    parser.add_argument(
        "--limit", type=_whole(0, 10**9), default=1000, help="the first so many images; 0 for all (1000)"
    )
    parser.add_argument("--same-test-set", action="store_true", help="the test split, of runs with other label splits")
    parser.add_argument("--pretrained", action="store_true", help="the shipped weights as well")
    parser.add_argument("--out", type=_path, help="directory of the table and the picture (LOGS/comparison)")
    _add_logs(parser)
    options, overrides = parser.parse_known_args(words)
    refs = list(dict.fromkeys([*options.runs, *([SHIPPED] if options.pretrained else [])]))
    split = "test" if options.same_test_set else options.split

    root, trained, names = Settings(), {}, {}
    root.runs.root = str(options.logs)
    for ref in refs:
        directory, _ = _find_weights(ref, root)
        trained[ref] = config.load(directory / "config.yaml", overrides)
        run = Run(directory)
        names[ref] = f"{run.id:06d} {run.name}" if run.id and not Path(ref).is_file() else ref
    if len({settings.data.name for settings in trained.values()}) > 1:
        listed = ", ".join(f"{names[ref]} on {settings.data.name}" for ref, settings in trained.items())
        raise UserError(f"these models were trained on different data ({listed}): compare models of one data set")

    benches: dict[str, _Workbench] = {}
    for ref, settings in trained.items():
        elbo = ["--model.importance_samples", "1"] if settings.model.importance_samples else []
        benches[ref] = _bench_of(ref, options.logs, [*overrides, *elbo])
        benches[ref].dataset = benches[refs[0]].dataset  # one copy in memory
    first = benches[refs[0]]
    others = [names[ref] for ref, bench in benches.items() if bench.split.sha256 != first.split.sha256]
    if others and not options.same_test_set:
        raise UserError(
            f"the label split of {', '.join(others)} is not that of {names[refs[0]]}: one validates on what "
            "another was trained on. Train them with the same data.* settings, or compare on test: --same-test-set"
        )

    data, rows = first.dataset, first.split.validation
    x, y = (data.test_x, data.test_y) if split == "test" else (data.train_x[rows], data.train_y[rows])
    x, y = x[: options.limit or None], y[: options.limit or None]
    batch_size = min(settings.train.eval_batch_size for settings in trained.values())  # one, and so the same noise
    table = []
    for ref, bench in benches.items():
        there = x.to(bench.device), y.to(bench.device)
        figures = comparison.measure(bench.model, *there, data.levels, options.k, batch_size, title=names[ref])
        table.append({"run": names[ref], "recipe": trained[ref].model.recipe, **figures})
    caption = (
        f"{len(x):,} {split} images of {data.name}. log p(x) is exact, or where the likelihood is a bound the ELBO, in "
        f"nats, the mean over {NOISE_DRAWS} draws of the noise; IWAE is the bound from {options.k} importance samples, "
        "the gap how much it gains on one draw. Bits/dim over draws are of the mean of p(x) over them; accuracy, ECE "
        "and Brier of the mean of p(y | x)."
    )
    out = options.out or options.logs / "comparison"
    print(comparison.write(table, out, caption))
    print(f"comparison.csv, .md and .png are in {out}")
    return 0


def _take(words: Sequence[str], *names: str) -> tuple[dict[str, str], list[str]]:
    """Split options of the command itself, `--name value` or `--name=value`, from the settings."""
    own: dict[str, str] = dict.fromkeys(names, "")
    rest: list[str] = []
    pending = iter(words)
    for word in pending:
        name, equals, value = word.partition("=")
        if name not in names:
            rest.append(word)
            continue
        own[name] = value if equals else next(pending, "")
        if not own[name] or own[name].startswith("--"):
            raise UserError(f"{name} needs a value")
        own[name] = expand(own[name])
    return own, rest


def _check_bytes(word: str) -> None:
    """UserError where a word, which may name a file, is no text: YAML, TensorBoard and others could not write it."""
    try:
        text = os.fsencode(word) == word.encode()
    except UnicodeError:
        text = False
    if not text:
        raise UserError(f"{word!r} is no UTF-8 text here: rename what it names, or set LC_ALL=C.UTF-8")


class _Parser(argparse.ArgumentParser):
    """Of a command with few options; what it cannot take is a UserError, as anywhere."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; {self.prog} --help tells more")


def _say(line: str) -> None:
    """Print a line for people, above a progress bar where there is one."""
    from tqdm import tqdm

    tqdm.write(line)
    sys.stdout.flush()


def _path(text: str) -> Path:
    return Path(expand(text))


def _whole(low: int, high: int) -> Callable[[str], int]:
    """The type of an option that is a whole number in a range."""

    def whole(text: str) -> int:
        allowed = Range(low, high)
        if not re.fullmatch(r"[-+]?[0-9]{1,30}", text) or int(text) not in allowed:
            raise argparse.ArgumentTypeError(f"it must be a whole number {allowed}, not {text!r}")
        return int(text)

    return whole


def _add_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--logs", "--runs.root", type=_path, default=Path("logs"), help="directory of the runs (logs)")


def _small_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"scnf {command}",
        description=description,
        epilog="Settings such as --data.root may follow.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "weights",
        type=expand,
        metavar="RUN|PATH",
        help="a run (id, directory, last), a directory, a .safetensors file, or weights that ship (shipped, or a name)",
    )
    _add_logs(parser)
    return parser


def _bench_of(ref: str, logs: Path, overrides: Sequence[str]) -> _Workbench:
    """Data and model with the weights of `ref`, by the settings that lie beside them."""
    settings = Settings()
    settings.runs.root = str(logs)
    directory, weights = _find_weights(ref, settings)
    if not (directory / "config.yaml").is_file():
        raise UserError(f"{directory} holds no config.yaml, which says what the weights belong to")
    kept, settings = config.load(directory / "config.yaml"), config.load(directory / "config.yaml", overrides)
    if settings.pretrained != kept.pretrained:
        raise UserError(f"this reads the weights of {ref}: name others in their place, without --pretrained")
    _check_model(kept, settings, directory)
    bench = _Workbench(settings, directory)
    if (directory / "split.json").is_file():
        _check_split(Run(directory), bench)
    about = bench.load_weights(weights)
    if weights == Run(directory).checkpoint("best"):
        if about.get("run") != Run(directory).key:
            raise UserError(f"{weights} belongs to another run than {directory}: restore the run's own file")
        print(f"note: {directory} is not finished: these are its best weights so far", file=sys.stderr)
    bench.settle_threads(bench.evaluation)
    return bench


def _find_weights(ref: str, settings: Settings) -> tuple[Path, Path]:
    """(directory, weights) of what a user calls weights: shipped ones, a directory, a run, or a file.

    A file's path may come with its check sum, which it then must have.
    """
    ref, _, sha256 = ref.partition(_PINNED)
    if sha256:
        directory, weights = _find_weights(ref, settings)
        if _sha256(weights) != sha256:
            raise UserError(
                f"{weights} is not the file that these settings were run with, by its SHA-256: restore it, or take it "
                f"as it is with --pretrained {ref}"
            )
        return directory, weights
    if ref == SHIPPED:
        recipe = settings.model.recipe
        if (place := shipped.find_weights(recipe)) is None:
            raise UserError(
                f"no weights ship for the recipe {recipe}: give a path, --pretrained PATH, or train without"
            )
        return place, place / "model.safetensors"
    path = Path(ref)
    if path.is_file():
        inside = path.parent.name == "checkpoints"  # of a run, whose config.yaml lies one up
        return (path.parent.parent if inside else path.parent), path
    if path.suffix == ".safetensors":
        raise UserError(f"there is no file {path}")
    if not path.exists() and (place := shipped.find_weights(ref)) is not None:
        return place, place / "model.safetensors"
    directory = path if path.is_dir() else Run.find(Path(settings.runs.root), ref).path
    for weights in (directory / "model.safetensors", Run(directory).checkpoint("best")):
        if weights.is_file():
            return directory, weights
    raise UserError(f"{directory} holds no weights: neither model.safetensors nor checkpoints/best.safetensors")


def _check_model(trained: Settings, settings: Settings, directory: Path) -> None:
    """Refuse settings with which the weights of `directory` would fit, and make another function than the trained one.

    With `train.adapt`, the class-conditional part may be another.
    """
    from scnf.models.architectures import LEARNED_ELSEWHERE, RECIPES

    recipe = settings.model.recipe
    if trained.model.recipe != recipe:
        return  # shapes will not fit
    try:
        before, now = (RECIPES[recipe].resolve(each.model.arguments()) for each in (trained, settings))
    except ValueError as error:
        raise UserError(str(error)) from error
    for name, value in now.items():
        apart = settings.train.adapt and name.startswith(("conditional", "embedding", "scales"))
        if name not in LEARNED_ELSEWHERE and before.get(name, value) != value and not apart:
            raise UserError(
                f"model.{name} is {before[name]} in {directory}, not {value}: with it the weights make another model. "
                "Leave it out, or train anew"
            )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _same_split(run: Run, bench: _Workbench) -> bool:
    return bool(run.read_json("split.json") == bench.split.to_json())


def _note_other_split(directory: Path, weights: Path, bench: _Workbench) -> None:
    if not all((directory / name).is_file() for name in ("config.yaml", "split.json")):
        return
    seen, wanted = config.load(directory / "config.yaml").data.name, bench.settings.data.name
    if seen != wanted:
        print(f"note: {weights} was trained on {seen}, not on {wanted}")
    elif not _same_split(Run(directory), bench):
        print(f"note: {weights} saw another label split, and with it rows that validate here: validation may flatter")


def _check_split(run: Run, bench: _Workbench) -> None:
    if not _same_split(run, bench):
        raise UserError(
            f"{run.path} was trained with another label split than these settings draw, and so validation would meet "
            "rows whose labels it has learned. Leave data.* as the run has it, or start a new run"
        )


def _device(name: str) -> Any:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda and this machine offers none to torch: use --device cpu, or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _peak_memory_mb(device: Any) -> float | None:
    """Of the device, or of this process; None where the system does not tell."""
    import torch

    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


if __name__ == "__main__":
    sys.exit(main())
