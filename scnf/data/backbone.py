"""Compute embeddings of images by a trained network, which a flow may model in place of pixels."""

import difflib
import hashlib
import logging
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scnf.data.arrays import load_vectors
from scnf.data.cache import cache_folder
from scnf.errors import FileError, InvalidArgument
from scnf.files import atomic_write

LARGEST_INPUT = 224
"""Side to which most networks crop their inputs; larger images say hardly more."""
_BATCH = 64
_SEVERAL = 256
"""Number of images from which a progress bar is shown."""
_log = logging.getLogger("scnf.data")


@dataclass(frozen=True)
class Backbone:
    """A backbone is a classification network of torchvision without its last layer, trained on other images.

    It takes images of any size, resizes and crops them as in its own training, and returns their embeddings, which are
    the inputs of its last linear layer. torchvision downloads the weights once, and checks them against the checksum in
    their address.

    Attributes:
        network: Name of the network, such as "resnet18".
        weights: Name of its weights, such as "IMAGENET1K_V1".
        shape: Shape (C, H, W) of the images.

    Example:
        >>> Backbone.of("resnet18", (3, 32, 32))
        Backbone(network='resnet18', weights='IMAGENET1K_V1', shape=(3, 32, 32))
    """

    network: str
    weights: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, network: str, shape: tuple[int, ...]) -> "Backbone":
        """Return the backbone with torchvision's best weights of a network.

        Raises:
            InvalidArgument: There is no such network.
        """
        from torchvision.models import get_model_weights

        _check_network(network)
        return cls(network, get_model_weights(network).DEFAULT.name, tuple(shape))

    def embed(self, images: Tensor) -> Tensor:
        """Return the embeddings [N, D] of images [N, C, H, W], uint8, by CUDA where it is available.

        Raises:
            InvalidArgument: The weights cannot be downloaded or read.
        """
        from tqdm import tqdm

        network, transform = _load(self.network, self.weights)
        device = next(network.parameters()).device
        parts = []
        with tqdm(total=len(images), unit="image", desc=self.network, disable=_hidden(images), leave=False) as bar:
            for batch in images.split(_BATCH):
                inputs = transform(batch.expand(-1, 3, -1, -1)).to(device, memory_format=torch.channels_last)
                with torch.no_grad():
                    parts.append(network(inputs).float().cpu())
                bar.update(len(batch))
        return torch.cat(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the backbone as :meth:`from_json` takes it."""
        return {"network": self.network, "weights": self.weights, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, values: Any) -> "Backbone":
        """Return the backbone that :meth:`to_json` wrote.

        Raises:
            InvalidArgument: The values are no such backbone.
        """
        try:
            network, weights, shape = values["network"], values["weights"], tuple(values["shape"])
        except (TypeError, KeyError):
            network, weights, shape = "", "", ()
        is_image = len(shape) == 3 and all(type(size) is int and size > 0 for size in shape)
        if not is_image or not all(isinstance(name, str) for name in (network, weights)):
            raise InvalidArgument("values", f"must hold network, weights and shape of a backbone, not {values!r:.80}")
        return cls(network, weights, shape)

    def embed_once(self, images: Tensor) -> Tensor:
        """Return :meth:`embed` of many images, from the cache where they have been embedded before."""
        digest = hashlib.sha256(f"{self.network} {self.weights} {tuple(images.shape)}".encode())
        digest.update(images.contiguous().numpy().data)
        try:
            path = cache_folder("embeddings") / f"{digest.hexdigest()[:32]}.npy"
            return load_embeddings(path, len(images))
        except (OSError, InvalidArgument):  # absent, or damaged
            embeddings = self.embed(images)
        try:
            with atomic_write(path) as file:
                np.save(file, embeddings.numpy())
        except (OSError, FileError) as error:
            _log.warning("embeddings are not kept, and the next start computes them again: %s", error)
        return embeddings


def load_embeddings(path: Path, rows: int) -> Tensor:
    """Return the embeddings [N, D] of `rows` images from an .npy file.

    Raises:
        InvalidArgument: The file is no such file.
    """
    try:
        embeddings = load_vectors(path)
    except InvalidArgument as error:
        raise InvalidArgument("embeddings", error.problem) from error
    if len(embeddings) != rows:
        raise InvalidArgument(
            "embeddings",
            f"must have a row for each of the {rows:,} images, training images before test images and each in the "
            f"order of the paths, and {path} has {len(embeddings):,}",
        )
    return embeddings


def _hidden(images: Tensor) -> bool | None:
    """Return whether tqdm shows no bar; None shows it on a terminal."""
    return True if len(images) < _SEVERAL else None


def _check_network(network: str) -> None:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if network not in names:
        close = difflib.get_close_matches(network, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InvalidArgument(
            "embeddings",
            "must be an .npy file of embeddings, or a classification network of torchvision such as resnet18, "
            f"not {network!r}{hint}",
        )


@cache
def _load(network: str, weights: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return a network with trained weights, without its last linear layer, and the transform of its inputs."""
    from torchvision.models import get_model, get_model_weights

    _check_network(network)
    try:
        trained: Any = get_model_weights(network)[weights]
    except KeyError as error:
        raise InvalidArgument("embeddings", f"must name weights of {network}, which has no {weights}") from error
    try:
        # once without unpickling, so that a damaged or foreign file is refused; the network reads the same file
        trained.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_model(network, weights=trained)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(trained.url).name
        problem = (
            f"{place} does not hold: remove it"
            if place.exists()
            else f"cannot be downloaded ({error}): put {trained.url} at {place}"
        )
        raise InvalidArgument(
            "embeddings",
            f"needs the trained weights of {network}, which {problem}, or give an .npy file of embeddings",
        ) from error
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise InvalidArgument("embeddings", f"must be a network that ends in a linear layer, and {network} does not")
    model.set_submodule(layers[-1], nn.Identity())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().to(device, memory_format=torch.channels_last), trained.transforms()
