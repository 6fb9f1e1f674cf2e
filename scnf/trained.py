"""Apply trained weights to images: classes, posteriors, densities and samples."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scnf import UNLABELLED
from scnf.analysis import unusual
from scnf.analysis.calibration import Calibration
from scnf.data.batches import add_noise, binarize
from scnf.data.inputs import Inputs
from scnf.distributions import ClassPrior
from scnf.errors import InvalidArgument, UserError
from scnf.experiment import load_model
from scnf.files import read_text
from scnf.models.base import JointModel
from scnf.threads import RANDOM
from scnf.training.metrics import NOISE_DRAWS
from scnf.weights import Weights, find_weights

CALIBRATION = "calibration.json"
"""File in a run, or beside weights, with the calibration of the weights and their checksum."""
UNUSUAL = "unusual.json"
"""File in a run, or beside weights, with the statistics of usual images and the checksum of the weights."""


class TrainedModel:
    """A trained model with all that it takes to apply it to new images.

    :func:`load` returns one. Images may be paths, Pillow images, arrays or tensors, see
    :meth:`scnf.data.inputs.Inputs.rows`. Every image gets the same draws of the noise of dequantisation, so an answer
    depends on the image alone, and not on the other images of a call. Threads may share the object.

    A variational model whose classifier draws latent variables takes them from a fixed seed, so that the same call
    gives the same answer.

    Args:
        model: Model, which this object keeps in evaluation mode.
        inputs: Inputs and classes of the model.
        draws: Number of draws of the noise over which answers are averaged.
        batch_size: Number of images that are computed at once; by default 256, or fewer where they are large.
        calibration: Temperature and prediction sets of the model; None where it is not calibrated.
        usual: Statistics of usual images; None where there are none.

    Attributes:
        noise: Draws [draws, C, H, W] of the noise in [0, 1), or [draws, D] for points.

    Example:
        >>> model = load("scnf-digits")
        >>> images = np.zeros((2, 8, 8))
        >>> model.predict(images).shape, model.predict_proba(images).shape, model.log_prob(images).shape
        ((2,), (2, 10), (2,))
        >>> model.sample("3", 4).shape
        (4, 1, 8, 8)
    """

    def __init__(
        self,
        model: JointModel,
        inputs: Inputs,
        draws: int = NOISE_DRAWS,
        batch_size: int | None = None,
        calibration: Calibration | None = None,
        usual: unusual.Usual | None = None,
    ) -> None:
        self.model, self.inputs, self.calibration, self.usual = model.eval(), inputs, calibration, usual
        self.batch_size = batch_size or max(1, min(256, 2**20 // math.prod(inputs.shape)))
        self._device = next((each.device for each in model.parameters()), torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.rand(draws, *inputs.shape, generator=generator).to(self._device)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes in the order of their labels."""
        return self.inputs.class_names

    @property
    def has_density(self) -> bool:
        """Whether the model knows p(x), which a plain classifier does not."""
        return self.model.likelihood_of != "labels"

    @property
    def prior(self) -> np.ndarray | None:
        """The prior p(y) [K] of the model, or None for a classifier, which has none."""
        prior = next((part for part in self.model.modules() if isinstance(part, ClassPrior)), None)
        return None if prior is None else prior.log_prob_all().detach().double().exp().cpu().numpy()

    def predict(self, images: Any) -> np.ndarray:
        """Return the name of the most likely class [N] of each image.

        Raises:
            InvalidArgument: The model does not take these images.
        """
        labels = self.predict_proba(images).argmax(axis=1)
        return np.array([self.class_names[label] for label in labels])

    def predict_proba(self, images: Any) -> np.ndarray:
        """Return p(y | x) [N, K], averaged over draws of the noise, and calibrated where there is a calibration.

        Raises:
            InvalidArgument: The model does not take these images.
        """
        return self.answers(self.inputs.rows(images))[0]

    def prediction_sets(self, images: Any) -> list[tuple[str, ...]]:
        """Return the names of the classes that each image may have, the most likely one first.

        The sets of new images hold the true class with the probability that the model was calibrated for, as long as
        these images are drawn as the labelled ones were. See :func:`scnf.analysis.calibration.conformal_threshold`.

        Raises:
            InvalidArgument: The model is not calibrated, or does not take these images.

        Example:
            >>> model = load("scnf-digits")
            >>> model.calibration = Calibration(temperature=2.0, threshold=0.05, alpha=0.1, num_labels=250)
            >>> model.prediction_sets(model.sample("3"))
            [('3',)]
        """
        if self.calibration is None:
            raise InvalidArgument("model", "must be calibrated to give prediction sets: run `scnf calibrate` on it")
        return self.named_sets(self.predict_proba(images))

    def named_sets(self, posteriors: np.ndarray) -> list[tuple[str, ...]]:
        """Return the prediction sets of calibrated posteriors [N, K], as :meth:`prediction_sets` does."""
        assert self.calibration is not None
        sets, order = self.calibration.sets(posteriors), np.argsort(-posteriors, axis=1, kind="stable")
        return [
            tuple(self.class_names[label] for label in labels if members[label])
            for labels, members in zip(order, sets, strict=True)
        ]

    def log_prob(self, images: Any) -> np.ndarray:
        """Return log p(x) [N] in nats, the logarithm of the mean density over draws of the noise.

        It is the density of images on [0, 1)^D, or the probability of binarised images. It is exact up to the noise, or
        for a variational model a lower bound.

        Raises:
            InvalidArgument: The model does not take these images, or has no p(x).
        """
        if not self.has_density:
            raise InvalidArgument("model", "must know p(x), and a plain classifier does not")
        return self.answers(self.inputs.rows(images))[1]

    def unusual(self, images: Any) -> np.ndarray:
        """Return the share [N] of the images of the training that are less unusual than each image, in [0, 1).

        Of images that are drawn as those of the training, one in a hundred scores 0.99 or more. See
        :class:`scnf.analysis.unusual.Usual`.

        Raises:
            InvalidArgument: The model does not take these images, has no p(x), or does not know what is usual.

        Example:
            >>> load("scnf-digits").unusual(np.full((1, 8, 8), 0.5)).round(2)
            array([1.])
        """
        if self.usual is None:
            reason = "run `scnf train` with --pretrained RUN and --epochs 0 on its data" if self.has_density else ""
            raise InvalidArgument("model", f"must know what is usual: {reason or 'a plain classifier has no p(x)'}")
        rows = self.inputs.rows(images)
        return self.usual.scores(self.unusual_statistics(rows, self.answers(rows)[1]))

    def unusual_statistics(self, rows: Tensor, log_probs: np.ndarray) -> np.ndarray:
        """Return the statistics [N, T] by which rows with log p(x) [N] are usual or not."""
        return unusual.statistics(log_probs, rows, self.inputs.levels)

    def answers(self, rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return p(y | x) [N, K] and log p(x) [N] of the rows that :meth:`scnf.data.inputs.Inputs.rows` returns.

        log p(x) of a plain classifier is NaN. A calibration changes p(y | x) alone.
        """
        log_posteriors, densities = self.log_answers(rows)
        if self.calibration is not None:
            return self.calibration.posteriors(log_posteriors), densities
        return np.exp(log_posteriors), densities

    def log_answers(self, rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return log p(y | x) [N, K] without calibration, and log p(x) [N], in nats, as :meth:`answers` does."""
        parts = [self._answers(batch.to(self._device)) for batch in rows.split(self.batch_size)]
        log_posteriors, densities = zip(*parts, strict=True)
        return torch.cat(log_posteriors).cpu().numpy(), torch.cat(densities).cpu().numpy()

    def representation(self, rows: Tensor) -> np.ndarray:
        """Return the features [N, D] that the classifier reads, averaged over draws of the noise.

        Neighbouring rows tend to be of one class, see :meth:`scnf.models.base.JointModel.representation`.

        Args:
            rows: Rows that :meth:`scnf.data.inputs.Inputs.rows` returns.
        """
        parts = [self._representation(batch.to(self._device)) for batch in rows.split(self.batch_size)]
        return torch.cat(parts).cpu().numpy()

    def sample(self, label: str | int, num: int = 1, seed: int = 0) -> np.ndarray:
        """Draw images of a class.

        Args:
            label: Class, by its name or label.
            num: Number of images.
            seed: Seed of the draw.

        Returns:
            Images [num, C, H, W] in [0, 1] or points [num, D], float32.

        Raises:
            InvalidArgument: There is no such class, the model draws no images, or `num` is no number of images.
        """
        if not self.has_density:
            raise InvalidArgument("model", "must know p(x) to draw images, and a plain classifier does not")
        if isinstance(num, bool) or not isinstance(num, int | np.integer) or num < 1:
            raise InvalidArgument("num", f"must be a whole number of 1 or more, not {num!r}")
        y = torch.full((int(num),), self.inputs.label_of(label), device=self._device)
        with self._seeded(seed, True):
            x = self.model.sample(y).float().cpu()
        return (x.clamp(0, 1) if self.inputs.levels is not None else x).numpy()

    def _answers(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(y | x) [N, K] and log p(x) [N] of one batch of rows."""
        noises = self._noises()
        log_posterior = log_density = torch.full((), -torch.inf, device=rows.device)
        for draw, noise in enumerate(noises):
            with self._seeded(draw, not self.model.exact):
                posterior, density = self._answer(self._dequantised(rows, noise))
            log_posterior = torch.logaddexp(log_posterior, posterior.double())
            log_density = torch.logaddexp(log_density, density.double())
        log_draws = float(np.log(len(noises)))
        return log_posterior - log_draws, log_density - log_draws

    def _answer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(y | x) [N, K] and log p(x) [N] of inputs, where the latter is NaN without a density."""
        if not self.has_density:
            return self.model.class_log_probs(x), torch.full((len(x),), torch.nan, device=x.device)
        if not self.model.exact:
            return self.model.class_log_probs(x), self.model.log_likelihood(x)
        self.model.check(x)
        density, posterior, _ = self.model.step(x, torch.full((len(x),), UNLABELLED, device=x.device))
        return posterior, density

    def _representation(self, rows: Tensor) -> Tensor:
        """Return the features [N, D] of one batch of rows."""
        noises = self._noises()
        total = torch.zeros((), device=rows.device)
        for draw, noise in enumerate(noises):
            with self._seeded(draw, not self.model.exact):
                total = total + self.model.representation(self._dequantised(rows, noise)).flatten(1).double()
        return total / len(noises)

    def _noises(self) -> Tensor:
        """Return the draws of the noise; one draw is enough where nothing is random."""
        return self.noise[:1] if self.inputs.levels is None and self.model.exact else self.noise

    def _dequantised(self, rows: Tensor, noise: Tensor) -> Tensor:
        levels = self.inputs.levels
        return rows if levels is None else model_inputs(rows, noise, levels, self.model.likelihood_of == "binary")

    @contextmanager
    def _seeded(self, seed: int, is_random: bool) -> Iterator[None]:
        """Compute without gradients. A random computation takes its numbers from a seed, one thread at a time."""
        if not is_random:
            with torch.no_grad():
                yield
            return
        devices = [self._device] if self._device.type == "cuda" else []
        with RANDOM, torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield


def model_inputs(rows: Tensor, noise: Tensor, levels: int, is_binary: bool) -> Tensor:
    """Return pixels that a model takes, from grey levels and noise that broadcast against each other.

    Pixels of a model of binary images are black or white already, so that the model draws nothing itself.
    """
    return binarize(rows, noise, levels) if is_binary else add_noise(rows, noise, levels)


def load(
    ref: str | Path, logs: str | Path = "logs", device: str = "auto", calibration: str | Path | None = None
) -> TrainedModel:
    """Load trained weights with everything that it takes to apply them, and with their calibration where there is one.

    A run with parts of somebody else is refused. :func:`scnf.parts.trust` accepts all parts, and
    :func:`scnf.parts.import_file` a file.

    Args:
        ref: A run (id, directory, "last"), a directory or .safetensors file of weights, or the name of shipped weights.
        logs: Directory of all runs.
        device: "cpu", "cuda", or "auto" for CUDA where it is available.
        calibration: File that `scnf calibrate` wrote, or its directory; by default the file beside the weights.

    Raises:
        UserError: There are no such weights, or no such calibration, or they are damaged.

    Example:
        >>> load("scnf-digits").class_names[:3]
        ('0', '1', '2')
    """
    model, inputs = load_model(str(ref), Path(logs), ["--device", device])
    path = None if calibration is None else Path(calibration)
    weights = find_weights(str(ref), Path(logs))
    return TrainedModel(model, inputs, calibration=_calibration(weights, path), usual=read_usual(weights))


def read_usual(weights: Weights) -> unusual.Usual | None:
    """Return the statistics of usual images beside weights, or None where there are none, or those of other weights.

    Raises:
        UserError: The file is damaged.
    """
    path = weights.directory / UNUSUAL
    try:
        values = json.loads(read_text(path))
        usual = unusual.Usual.from_json(values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): restore or remove it") from error
    if values.get("weights") != weights.sha256:
        print(f"note: {path} is of other weights than {weights.path}; unusual is left out", file=sys.stderr)
        return None
    return usual


def _calibration(weights: Weights, path: Path | None) -> Calibration | None:
    """Return the calibration in a file or directory, by default beside the weights, where there may be none.

    Raises:
        UserError: The file is absent, damaged, or of other weights.
    """
    is_named = path is not None
    path = weights.directory if path is None else path
    path = path / CALIBRATION if path.is_dir() else path
    try:
        values = json.loads(read_text(path))
        calibration = Calibration.from_json(values)
    except FileNotFoundError as error:
        if is_named:
            raise UserError(f"there is no calibration {path}: `scnf calibrate` writes one") from error
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): run `scnf calibrate` again") from error
    if values.get("weights") != weights.sha256:
        problem = f"{path} was fitted to other weights than {weights.path}: run `scnf calibrate` again"
        if is_named:
            raise UserError(problem)
        print(f"note: {problem}; p(y | x) is not calibrated", file=sys.stderr)
        return None
    return calibration
