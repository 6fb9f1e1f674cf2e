"""Compare models on the same rows by likelihood, bounds, classification, calibration and speed."""

import csv
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from scnf.analysis import plots
from scnf.batch import Batch
from scnf.files import write_text
from scnf.models.base import JointModel, JointOutput
from scnf.streams import printable
from scnf.training.metrics import (
    bits_per_dim,
    brier_score,
    check_metrics,
    check_split,
    compute_metrics,
    evaluate_draws,
    evaluation_mode,
    noisy_batches,
)
from scnf.words import noun_of

_Result = TypeVar("_Result")

_HEADINGS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "run": ("run", str),
    "recipe": ("recipe", str),
    "likelihood": ("likelihood", str),
    "nats": ("log p(x)", "{:.2f}".format),
    "iwae_nats": ("IWAE", "{:.2f}".format),
    "gap_nats": ("gap", "{:.2f}".format),
    "bits_per_dim": ("bits/dim", "{:.3f}".format),
    "bits_per_dim_over_draws": ("over draws", "{:.3f}".format),
    "iwae_bits_per_dim": ("IWAE bits/dim", "{:.3f}".format),
    "gap_bits_per_dim": ("gap bits/dim", "{:.3f}".format),
    "accuracy": ("accuracy", lambda value: f"{100 * value:.2f} %"),
    "one_draw_accuracy": ("one draw", lambda value: f"{100 * value:.2f} %"),
    "ece": ("ECE", "{:.3f}".format),
    "brier": ("Brier", "{:.3f}".format),
    "density_images_per_second": ("densities/s", "{:,.0f}".format),
    "posterior_images_per_second": ("posteriors/s", "{:,.0f}".format),
    "parameters": ("parameters", "{:,}".format),
}
_LEFT = ("run", "recipe", "likelihood")
_NATS = ("nats", "iwae_nats", "gap_nats")  # starred for likelihoods of binarised pixels


def measure(
    model: JointModel,
    x: Tensor,
    y: Tensor,
    levels: int | None,
    num_samples: int = 50,
    batch_size: int = 500,
    seed: int = 0,
    title: str = "",
) -> dict[str, Any]:
    """Measure one row of the comparison table; the labels serve only to score.

    All metrics come from passes over :func:`scnf.training.metrics.noisy_batches`. With the same `batch_size`, all
    models get the same dequantised and binarised pixels in the same draws.

    Args:
        model: Model, evaluated on unlabelled data. Its bound is the ELBO if it draws one importance sample itself.
        x: Images uint8 [N, C, H, W], or points float32 [N, D].
        y: True labels [N].
        levels: Number of grey levels; None for points.
        num_samples: Number k of samples of the importance-weighted bound (https://arxiv.org/abs/1509.00519, eq. 8).
        batch_size: Number of rows that are evaluated at once.
        seed: Seed of the noise.
        title: Title of the progress bar.

    Returns:
        A dictionary with these keys; metrics that the model does not have are None.

        * "likelihood" is "exact" or "bound", and "likelihood_of" is the model's.
        * "nats" is the mean of log p(x), or of the ELBO, over draws of the noise.
        * "gap_nats" is the amount by which the IWAE bound exceeds the ELBO on the first draw, and "iwae_nats" is the
          sum of nats and gap. Both exist for bounds alone.
        * "bits_per_dim", "gap_bits_per_dim" and "iwae_bits_per_dim" are the same three per dimension, for densities of
          grey levels.
        * "bits_per_dim_over_draws", "accuracy", "one_draw_accuracy" and "ece" are metrics of
          :func:`scnf.training.metrics.evaluate`, and "brier" is the Brier score of the same posterior.
        * "density_images_per_second" is the speed of log p(x), exact or with one sample.
        * "posterior_images_per_second" is the speed of p(y | x), and "parameters" counts the parameters.

    Raises:
        InvalidArgument: x is not valid data, or y does not hold one label of the model's classes for each row.
        NotFinite: a metric is NaN.

    Example:
        >>> from scnf.recipes import build
        >>> model = build("m2", shape=(1, 8, 8), num_classes=10, levels=17, hidden=16, latent=4, likelihood="logistic")
        >>> x = torch.randint(17, (6, 1, 8, 8), dtype=torch.uint8)
        >>> row = measure(model, x, torch.arange(6), levels=17, num_samples=5)
        >>> row["likelihood"], row["iwae_nats"] == row["nats"] + row["gap_nats"]
        ('bound', True)
    """
    from tqdm import tqdm

    check_split(x, y, levels)
    device, first = x.device, x[:batch_size]
    density, bound = model.likelihood_of != "labels", not model.exact

    def run(work: Callable[[Tensor], _Result], rows: Tensor = x) -> tuple[list[_Result], float]:
        """Return the results of `work` for each batch of images, and the speed in images/s."""
        results, seconds = [], 0.0
        for images in noisy_batches(rows, levels, batch_size, seed):
            started = _now(device)
            results.append(work(images))
            seconds += _now(device) - started
            bar.update(len(images))
        return results, len(rows) / seconds

    def classify(images: Tensor) -> JointOutput:
        output: JointOutput = model(Batch.unlabelled(images))
        return output

    row: dict[str, Any] = dict.fromkeys(key for key in _HEADINGS if key not in ("run", "recipe"))
    row["likelihood_of"] = model.likelihood_of
    draws = evaluate_draws(model, x, levels, batch_size, seed)
    metrics = compute_metrics(model, draws, y, levels, math.prod(x.shape[1:]))
    check_metrics(metrics, title or "this model")  # before the passes that are timed
    row |= {key: value for key, value in metrics.items() if key in row}
    row["brier"] = brier_score(draws.class_log_probs, y)
    total = (1 + density + bound) * len(x) + len(first)
    bar = tqdm(total=total, desc=title, unit=noun_of(levels), dynamic_ncols=True, disable=None, leave=False)
    with evaluation_mode(model), bar:
        run(classify, first)  # warm-up, since the first call is slow
        outputs, row["posterior_images_per_second"] = run(classify)
        if density:
            row["likelihood"], row["nats"] = "bound" if bound else "exact", -metrics["nll"]
            row["density_images_per_second"] = run(model.log_likelihood)[1]
        if bound:
            iwae = _mean(run(lambda images: model.log_likelihood(images, num_samples))[0])
            row["gap_nats"] = iwae - _mean([output.log_likelihood for output in outputs])
            row["iwae_nats"] = row["nats"] + row["gap_nats"]
    if bound and row["bits_per_dim"] is not None:
        assert levels is not None
        row["iwae_bits_per_dim"] = float(bits_per_dim(row["iwae_nats"], math.prod(x.shape[1:]), levels))
        row["gap_bits_per_dim"] = row["bits_per_dim"] - row["iwae_bits_per_dim"]
    check_metrics(row, title or "this model")
    row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return row


def format_table(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
    """Format rows of :func:`measure`, with "run" and "recipe" added, as a Markdown table with aligned columns."""
    cells = [{key: heading for key, (heading, _) in _HEADINGS.items()}]
    cells += [{key: _cell(row, key) for key in _HEADINGS} for row in rows]
    widths = {key: max(len(line[key]) for line in cells) for key in _HEADINGS}
    lines = [
        [line[key].ljust(width) if key in _LEFT else line[key].rjust(width) for key, width in widths.items()]
        for line in cells
    ]
    rule = ["-" * width if key in _LEFT else "-" * (width - 1) + ":" for key, width in widths.items()]
    text = [caption, "", *(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])]
    if any(row["likelihood_of"] == "binary" for row in rows):
        text += ["", "*) binarised pixels: not comparable with bits/dim"]
    return "\n".join(text) + "\n"


def write(rows: Sequence[Mapping[str, Any]], directory: Path, caption: str) -> str:
    """Write comparison.csv, comparison.md and comparison.png.

    Args:
        rows: Rows of :func:`measure` on the same images, with "run" and "recipe" added.
        directory: Directory of the files, created when absent.
        caption: Line above the table.

    Returns:
        The table as Markdown.

    Raises:
        UserError: a file cannot be written.
    """
    rows = [{**row, "run": printable(row["run"])} for row in sorted(rows, key=_rank)]
    table, text = format_table(rows, caption), io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(["run", "recipe", *rows[0]])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(directory / "comparison.csv", text.getvalue())
    write_text(directory / "comparison.md", table)
    _plot(rows, directory / "comparison.png")
    return table


def _plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot density and accuracy, one line for each row; density is in bits/dim, or in nats for points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6 + 0.4 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    unit, sign = ("bits_per_dim", 1) if any(row["bits_per_dim"] is not None for row in rows) else ("nats", -1)
    for height, row in enumerate(rows):
        right.plot(100 * row["accuracy"], height, "o", color="C0")
        if row["likelihood_of"] != "levels":
            continue
        if row["likelihood"] == "exact":
            left.plot(sign * row[unit], height, "o", color="C0", label="exact")
        else:
            elbo, iwae = sign * row[unit], sign * row[f"iwae_{unit}"]
            left.plot([elbo, iwae], [height, height], color="C1", alpha=0.5)
            left.plot(elbo, height, "o", color="C1", markerfacecolor="white", label="ELBO")
            left.plot(iwae, height, "o", color="C1", label="IWAE")
    left.set(title="Density (lower is better)", xlabel="bits/dim" if sign > 0 else "-log p(x) [nats]")
    left.set(
        yticks=range(len(rows)), yticklabels=[plots.plain(row["run"]) for row in rows], ylim=(len(rows) - 0.5, -0.5)
    )
    right.set(title="Accuracy", xlabel="accuracy [%]")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))  # one entry per label
    if handles:
        left.legend(handles.values(), handles.keys(), fontsize=8)
    plots.save(figure, path)


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if value is None:
        return "-"
    text = printable(_HEADINGS[key][1](value)).replace("|", r"\|")  # a bar would end the cell
    return text + "*" * (key in _NATS and row["likelihood_of"] == "binary")


def _rank(row: Mapping[str, Any]) -> float:
    """Return a sort key that puts the highest log p(x) first, and rows without a likelihood of grey levels last."""
    if row["likelihood_of"] != "levels":
        return math.inf
    return -float(row["nats"] if row["iwae_nats"] is None else row["iwae_nats"])


def _mean(parts: Sequence[Tensor]) -> float:
    return float(torch.cat(list(parts)).double().mean())


def _now(device: torch.device) -> float:
    """Wait for the work on a GPU, and return the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
