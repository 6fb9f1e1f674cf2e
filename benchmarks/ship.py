"""Make a finished run the weights that ship for its recipe, with a card that says what they are and where from.

    python benchmarks/ship.py RUN --config config.yaml --machine "two CPU cores (AMD EPYC)"
    python benchmarks/ship.py --refresh scnf-fast   # evaluate what ships again, and write its card anew
    python benchmarks/ship.py --check scnf-fast     # evaluate it again; exit code 1 where its card says otherwise

What ships is in pretrained/<recipe>/: config.yaml, model.safetensors and its sha256, split.json, and three files that
are made here. card.json has what the run says of its training, and figures, always from an evaluation of what ships;
README.md, the card, is made from all of these. unusual.json has what is usual among the images of the training.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from scnf import cli
from scnf.data.sources import load
from scnf.errors import UserError
from scnf.experiment import INPUTS, load_trained
from scnf.files import sha256_of, write_bytes, write_text
from scnf.fitting.unusual import write_usual
from scnf.runs import Run
from scnf.settings import Settings, load_settings, to_yaml
from scnf.training.metrics import NOISE_DRAWS, metrics_text
from scnf.weights import Weights

SHIPPED = Path(__file__).parents[1] / "pretrained"
SPLITS = ("validation", "test")
CARD = """# {recipe} on {data} with {labels} labels

| | |
|---|---|
| data | {data}; {labels} labels{balanced}, `data.data_seed` {data_seed}; {rows} images (`split.json`) |
| settings | `config.yaml`, seed {seed} |
| command | `python train_flow_ssl.py --config {config}` at commit {commit} |
| machine | {machine}, torch {torch}; {minutes:.1f} minutes, {rate:,.0f} images/s, {memory:,.0f} MB |
| kept | epoch {selected} of {epochs}, by `train.select` {select} on validation |
| labels read besides | those of the validation images pick the epoch{design} |
| validation | {validation} |
| test | {test} |
| figures | of the mean over {draws} draws of the noise, with torch {figures_torch}{views} |
| model.safetensors | {parameters:,} parameters, sha256 `{sha256}` |

The figures again, without training: `scnf evaluate pretrained/{recipe}`; compared with this card: `python
benchmarks/ship.py --check {recipe}`.
"""
DESIGN = "; those of all training images scored the settings of the neighbour graph, while it was designed"


def measure(folder: Path, root: Path) -> dict[str, Any]:
    """Parameters, and figures of each split by `--pretrained --train.epochs 0`, of the weights in `folder`."""
    settings = load_settings(folder / "config.yaml", from_run=True)
    with tempfile.TemporaryDirectory() as logs:
        words = ["--pretrained", str(folder), "--train.epochs", "0", "--data.root", str(root), "--runs.root", logs]
        with contextlib.redirect_stdout(sys.stderr):
            code = cli.main(["train", "--config", str(folder / "config.yaml"), *words])
        if code:
            raise SystemExit(code)
        summary = Run.find(Path(logs), "last").read_json("summary.json")
    rows = {
        "validation": settings.data.num_validation,
        "test": len(load(settings.data.name, str(root)).test_y),
    }
    figures = {split: {"rows": rows[split], **summary[split]} for split in SPLITS}
    return {"parameters": summary["parameters"], "figures_torch": torch.__version__.split("+")[0], "figures": figures}


def differences(told: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What two lots of :func:`measure` do not agree on, in words.

    Another processor adds up in another order. Log densities then differ in the last digits of float32, and a few rows
    change sides: where two classes are as likely, or at the edge of a bin of confidence.
    """
    lines = []
    for split in SPLITS:
        here, there = told["figures"][split], found["figures"][split]
        for key in sorted({*here, *there}):
            tolerance = 1e-4 if "bits" in key else 1e-4 * abs(here.get(key, 0.0)) if key == "nll" else 3 / here["rows"]
            if key not in here or key not in there or not abs(here[key] - there[key]) <= tolerance:
                lines.append(f"{split} {key}: the card has {here.get(key)}, the weights give {there.get(key)}")
    return lines


def render(folder: Path) -> str:
    """The card of what ships in `folder`."""
    settings, facts = (
        load_settings(folder / "config.yaml", from_run=True),
        json.loads((folder / "card.json").read_text()),
    )
    split, data = json.loads((folder / "split.json").read_text()), settings.data
    held_out, views = len(split["validation"]), settings.train.eval_views
    return CARD.format(
        recipe=settings.model.name,
        data={"mnist": "MNIST", "digits": "sklearn's digits"}.get(data.name, data.name),
        labels=len(split["labelled"]),
        balanced=", balanced" if data.balanced else "",
        data_seed=data.data_seed,
        rows=f"{split['num_rows'] - held_out:,} training and {held_out:,} validation",
        seed=settings.seed,
        select=settings.train.select,
        design=DESIGN if settings.objective.propagations and data.name == "mnist" else "",
        draws=NOISE_DRAWS,
        views=f"; over views: of one draw of the image and {views} moved versions" if views else "",
        sha256=sha256_of(folder / "model.safetensors"),
        **{split: metrics_text(facts["figures"][split]) for split in SPLITS},
        **{key: value for key, value in facts.items() if key != "figures"},
    )


def refresh(folder: Path, root: Path, facts: Mapping[str, Any]) -> None:
    """Evaluate what lies in `folder`, and write card.json and README.md; `facts` are of its training."""
    facts = {**facts, **measure(folder, root)}
    write_text(folder / "card.json", json.dumps(facts, indent=1) + "\n")
    write_text(folder / "README.md", render(folder))
    remember_usual(folder, root)
    print(f"{folder.name}: test {metrics_text(facts['figures']['test'])}")


def remember_usual(folder: Path, root: Path) -> None:
    """Write what is usual among the images on which the weights in `folder` were trained."""
    experiment = load_trained(str(folder), Path("logs"), ["--data.root", str(root), "--device", "cpu"])
    write_usual(experiment, Weights(folder, folder / "model.safetensors"))


def ship(run: Run, command: str, machine: str, root: Path) -> None:
    """Copy what ships of `run` to its recipe's directory, and make the card."""
    summary, environment = run.read_json("summary.json"), run.read_json("env.json")
    if summary["status"] != "finished" or environment["dirty"]:
        raise UserError(f"{run.path} is not finished, or was trained with changes that no commit holds")
    settings = load_settings(run.path / "config.yaml", from_run=True)
    fresh = Settings()  # nothing of this machine
    settings.data.root, settings.runs, settings.threads = fresh.data.root, fresh.runs, fresh.threads
    facts = {
        "config": command,
        "commit": environment["commit"][:7],
        "machine": machine,
        "torch": environment["versions"]["torch"],
        "minutes": summary["minutes"],
        "rate": summary["images_per_second"],
        "memory": summary["peak_memory_mb"],
        "selected": summary["selected_epoch"],
        "epochs": summary["epochs"],
    }
    sha256 = sha256_of(run.weights)
    with tempfile.TemporaryDirectory() as scratch:  # what ships is as it was until the new card is there
        made, folder = Path(scratch) / settings.model.name, SHIPPED / settings.model.name
        for name in ("model.safetensors", "split.json", INPUTS):
            write_bytes(made / name, (run.path / name).read_bytes())
        write_text(made / "config.yaml", to_yaml(settings))
        write_text(made / "model.safetensors.sha256", f"{sha256}  model.safetensors\n")
        refresh(made, root, facts)
        for path in sorted(made.iterdir()):
            write_bytes(folder / path.name, path.read_bytes())
    print(f"all of it is in {folder}")


def main() -> int:
    try:
        return run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="an id, a directory, or `last`")
    names: dict[str, Any] = dict(nargs="+", default=[], choices=sorted(path.name for path in SHIPPED.iterdir()))
    parser.add_argument("--refresh", **names, metavar="NAME", help="evaluate again, write the cards anew")
    parser.add_argument("--check", **names, metavar="NAME", help="evaluate again, compare with the cards")
    parser.add_argument("--config", help="the configuration of the run, as users name it, and what else they add")
    parser.add_argument("--machine", help="what the run was trained on")
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="directory of the runs (logs)")
    parser.add_argument("--data.root", dest="root", type=Path, default=Path("data"), help="where the data lie (data)")
    options = parser.parse_args()
    if options.run:
        if not (options.config and options.machine):
            parser.error("a run ships with --config and --machine")
        ship(Run.find(options.logs, options.run), options.config, options.machine, options.root)
    elif not options.refresh and not options.check:
        parser.error("say which RUN to ship, or --refresh or --check what ships")
    for name in options.refresh:
        refresh(SHIPPED / name, options.root, json.loads((SHIPPED / name / "card.json").read_text()))
    lines = []
    for name in options.check:
        found = measure(SHIPPED / name, options.root)
        told = json.loads((SHIPPED / name / "card.json").read_text())
        lines += [f"{name}: {line}" for line in differences(told, found)]
    print("\n".join(lines or [f"{name}: the weights give what the card says" for name in options.check]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
