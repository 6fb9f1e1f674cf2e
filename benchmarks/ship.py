"""Make a finished run the weights that ship for its recipe, with a card that says what they are and where from.

    python benchmarks/ship.py RUN --config config.yaml --machine "two CPU cores (AMD EPYC)"

Writes pretrained/<recipe>/: config.yaml, model.safetensors and its sha256, split.json, and README.md, the card. Every
figure in the card is read from the run.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

from scnf import config
from scnf.files import write_bytes, write_text
from scnf.runs import Run
from scnf.training.metrics import figures_text

CARD = """# {recipe} on {data} with {labels} labels

| | |
|---|---|
| data | {data}; {labels} labels{balanced}, `data.data_seed` {data_seed}; {rows} images (`split.json`) |
| settings | `config.yaml`, seed {seed} |
| command | `python train_flow_ssl.py --config {config}` at commit {commit} |
| machine | {machine}, torch {torch}; {minutes:.1f} minutes, {rate:,.0f} images/s, {memory:,.0f} MB |
| kept | epoch {selected} of {epochs}, by `train.select` {select} on validation |
| validation | {validation} |
| test | {test} |{views}
| model.safetensors | {parameters:,} parameters, sha256 `{sha256}` |

The figures again, without training: `python train_flow_ssl.py --config {config} --pretrained --train.epochs 0`, or
`scnf evaluate pretrained/{recipe}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a finished run the weights that ship for its recipe.")
    parser.add_argument("run", help="an id, a directory, or `last`")
    parser.add_argument("--config", required=True, help="the configuration that it was trained with, as users name it")
    parser.add_argument("--machine", required=True, help="what it was trained on")
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="directory of the runs (logs)")
    options = parser.parse_args()
    run = Run.find(options.logs, options.run)
    summary: dict[str, Any] = run.read_json("summary.json")
    split, environment = run.read_json("split.json"), run.read_json("env.json")
    if summary["status"] != "finished" or environment["dirty"]:
        raise SystemExit(f"{run.path} is not finished, or was trained with changes that no commit holds")
    settings = config.load(run.path / "config.yaml", [])
    settings.data.root, settings.runs = config.DataSettings().root, config.RunSettings()  # no paths of this machine
    data, train, held_out = settings.data, settings.train, len(split["validation"])
    versions = "moved versions" if data.augment else "other draws of its noise"

    target = Path(__file__).parents[1] / "pretrained" / settings.model.recipe
    for name in ("model.safetensors", "split.json"):
        write_bytes(target / name, (run.path / name).read_bytes())
    write_text(target / "config.yaml", config.to_yaml(settings))
    sha256 = hashlib.sha256(run.weights.read_bytes()).hexdigest()
    write_text(target / "model.safetensors.sha256", f"{sha256}  model.safetensors\n")
    card = CARD.format(
        recipe=settings.model.recipe,
        data={"mnist": "MNIST", "digits": "sklearn's digits"}.get(data.name, data.name),
        labels=len(split["labelled"]),
        balanced=", balanced" if data.balanced else "",
        data_seed=data.data_seed,
        rows=f"{split['num_rows'] - held_out:,} training and {held_out:,} validation",
        seed=settings.seed,
        config=options.config,
        commit=environment["commit"][:7],
        machine=options.machine,
        torch=environment["versions"]["torch"],
        minutes=summary["minutes"],
        rate=summary["images_per_second"],
        memory=summary["peak_memory_mb"],
        selected=summary["selected_epoch"],
        epochs=summary["epochs"],
        select=train.select,
        validation=figures_text(summary["validation"]),
        test=figures_text(summary["test"]),
        views=f"\n| views | the image and {train.eval_views} {versions} |" if train.eval_views else "",
        parameters=summary["parameters"],
        sha256=sha256,
    )
    write_text(target / "README.md", card)
    print(f"{target}: {figures_text(summary['test'])}")


if __name__ == "__main__":
    main()
