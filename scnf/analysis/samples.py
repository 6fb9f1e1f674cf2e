"""Draw samples of a model for each class as a picture."""

from pathlib import Path

import torch

from scnf.analysis import plots
from scnf.data.inputs import Inputs
from scnf.models.base import JointModel


@torch.no_grad()
def sample_picture(model: JointModel, path: Path, labels: list[int], per_label: int, inputs: Inputs) -> None:
    """Write samples of each label as a PNG file, with one row of images per label or as a scatter plot of points.

    Args:
        model: Model that draws the samples.
        path: Path of the PNG file.
        labels: Classes of the samples.
        per_label: Number of samples of each class.
        inputs: Inputs and classes of the model.
    """
    model.eval()
    device = next(model.parameters()).device
    y = torch.tensor(labels, device=device).repeat_interleave(per_label)
    x = model.sample(y).float().cpu()
    if len(inputs.shape) == 3:
        several = len(labels) > 1
        columns = per_label if several else max(1, round(per_label**0.5))
        plots.image_grid(x, path, columns, [inputs.class_names[label] for label in labels] if several else None)
    else:
        plots.points(x[:, :2], y.cpu(), path, _density(model, x, device) if inputs.shape == (2,) else None)


def _density(
    model: JointModel, x: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the density p(x) on a grid around the samples, as (xs [G], ys [G], values [G, G]) with ys along rows."""
    low, high = x.quantile(0.005, dim=0) - 0.5, x.quantile(0.995, dim=0) + 0.5
    xs, ys = (torch.linspace(float(low[axis]), float(high[axis]), 120) for axis in (0, 1))
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).view(-1, 2).to(device)
    return xs, ys, model.log_likelihood(grid).exp().cpu().view(len(ys), len(xs))
