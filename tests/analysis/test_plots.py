import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scnf.analysis import plots
from scnf.errors import UserError


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_image_grid_has_the_right_size_and_pixels(tmp_path: Path, channels: int) -> None:
    images = torch.zeros(5, channels, 8, 8)
    images[1, 0] = 7.0  # clamped to 1: white, or red in RGB
    images[2, 0, 0, 0] = 0.5
    plots.image_grid(images, tmp_path / "grid.png", columns=3)
    grid = pixels(tmp_path / "grid.png")
    assert grid.shape == (2 * (48 + 2) + 2, 3 * (48 + 2) + 2, 3)
    assert grid[:2].min() == 255  # the gap
    assert grid[2:50, 2:50].max() == 0
    assert grid[20, 60].tolist() == ([255, 0, 0] if channels == 3 else [255, 255, 255])
    block = grid[2:50, 102:150, 0]
    assert (block[:6, :6] == 128).all() and block[6:].max() == 0 and block[:, 6:].max() == 0  # nearest neighbour
    assert grid[52:, 102:].min() == 255  # the sixth place is blank


def test_image_grid_row_labels_widen_the_left_margin(tmp_path: Path) -> None:
    images = torch.rand(4, 1, 28, 28)
    plots.image_grid(images, tmp_path / "plain.png", columns=2)
    plots.image_grid(images, tmp_path / "labelled.png", columns=2, row_labels=["class 0", "class 1"])
    plain, labelled = pixels(tmp_path / "plain.png"), pixels(tmp_path / "labelled.png")
    margin = labelled.shape[1] - plain.shape[1]
    assert plain.shape[:2] == (2 * (56 + 2) + 2, 2 * (56 + 2) + 2)
    assert margin > 10 and (labelled[:, margin:] == plain).all()
    for row in (0, 1):
        assert labelled[row * 58 : (row + 1) * 58, :margin].min() < 100


def test_image_grid_keeps_large_images_and_takes_rectangles_and_gradients(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 64, 100, dtype=torch.float64, requires_grad=True)
    plots.image_grid(images, tmp_path / "new" / "grid.png", columns=1)
    assert pixels(tmp_path / "new" / "grid.png").shape == (2 * 66 + 2, 104, 3)


@pytest.mark.parametrize("classes", [2, 10, 30])
@pytest.mark.parametrize("background", [False, True])
def test_points_plot_shows_coloured_samples_in_an_image_of_fixed_size(
    tmp_path: Path, classes: int, background: bool
) -> None:
    samples, labels = torch.randn(200, 2), torch.randint(-1, classes, (200,))
    xs, ys = torch.linspace(-3, 3, 40), torch.linspace(-2, 2, 30)
    density = (xs, ys, torch.exp(-(ys[:, None] ** 2) - xs**2)) if background else None
    plots.points(samples, labels, tmp_path / "points.png", density)
    image = pixels(tmp_path / "points.png")
    assert image.shape == (600, 720, 3)
    coloured = np.ptp(image.astype(int), axis=-1) > 60
    assert coloured.sum() > 300


def test_curves_plot_draws_every_panel(tmp_path: Path) -> None:
    rows = [
        {"epoch": e, "train.loss": 3 / e, "validation.accuracy": 1 - 0.5 / e, "validation.bits_per_dim": 1 + 1 / e}
        for e in range(1, 13)
    ]
    plots.curves(rows, tmp_path / "curves.png")
    assert blue_panels(tmp_path / "curves.png") == [True, True, True]


@pytest.mark.parametrize(
    ("rows", "drawn"),
    [
        ([], [False, False, False]),
        ([{"epoch": 1, "train.loss": 2.0}], [True, False, False]),
        ([{"train.loss": 2.0}], [False, False, False]),
        ([{"epoch": 1}, {"epoch": 2, "validation.accuracy": 0.5}], [False, True, False]),
        ([{"epoch": 1, "validation.nll": 90.0}, {"epoch": 2, "validation.nll": float("nan")}], [False, False, True]),
        ([{"epoch": e, "train.loss": 1.0 / e} for e in range(1, 99)], [True, False, False]),
    ],
)
def test_curves_plot_tolerates_missing_columns(tmp_path: Path, rows: list[dict[str, float]], drawn: list[bool]) -> None:
    plots.curves(rows, tmp_path / "curves.png")
    assert blue_panels(tmp_path / "curves.png") == drawn


def blue_panels(path: Path) -> list[bool]:
    image = pixels(path).astype(int)
    assert image.shape == (432, 1440, 3)
    assert image.min() < 100  # titles at least
    blue = image[..., 2] - image[..., 0] > 60
    return [
        bool(panel[:, 80:-80].any()) for panel in np.split(blue, 3, axis=1)
    ]  # panels may overlap a third by a little


def test_plot_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        plots.curves([], tmp_path / "file" / "curves.png")
    with pytest.raises(UserError, match="cannot write"):
        plots.image_grid(torch.rand(1, 1, 8, 8), tmp_path / "file" / "grid.png", columns=1)


def test_plots_import_matplotlib_late_and_pyplot_never(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from scnf.analysis import plots; assert 'matplotlib' not in sys.modules;"
        f"plots.curves([], pathlib.Path({str(tmp_path / 'c.png')!r})); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
