"""Compute embeddings of images by a trained network, which a flow may model in place of pixels."""

import difflib
import hashlib
import logging
import pickle
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scnf.data.arrays import load_vectors
from scnf.errors import FileError, InvalidArgument
from scnf.files import atomic_write, cache_folder, sha256_of

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
    the inputs of its last linear layer. torchvision downloads the weights once.

    Attributes:
        network: Name of the network, such as "resnet18".
        weights: Name of its weights, such as "IMAGENET1K_V1".
        shape: Shape (C, H, W) of the images.
        sha256: Checksum of the file of weights.

    Example:
        >>> backbone = Backbone("resnet18", "IMAGENET1K_V1", (3, 32, 32), "f37072fd...")
        >>> Backbone.from_json(backbone.to_json()) == backbone
        True
    """

    network: str
    weights: str
    shape: tuple[int, ...]
    sha256: str

    @classmethod
    def of(cls, network: str, shape: tuple[int, ...]) -> "Backbone":
        """Return the backbone with torchvision's best weights of a network.

        Raises:
            InvalidArgument: There is no such network, or its weights cannot be downloaded or read.
        """
        from torchvision.models import get_model_weights

        _check_network(network)
        weights: str = get_model_weights(network).DEFAULT.name
        return cls(network, weights, tuple(shape), _load(network, weights).sha256)

    def embed(self, images: Tensor) -> Tensor:
        """Return the embeddings [N, D] of images [N, C, H, W], uint8, by CUDA where it is available.

        Raises:
            InvalidArgument: The weights cannot be downloaded or read, are not those of this backbone, or give numbers
                that are not finite.
        """
        from tqdm import tqdm

        network, transform, place, sha256 = _load(self.network, self.weights)
        if sha256 != self.sha256:
            raise InvalidArgument(
                "embeddings",
                f"must be those of the weights of {self.network} that the model was trained with, and this machine has "
                f"others: put the file of SHA-256 {self.sha256[:12]}... at {place}",
            )
        device = next(network.parameters()).device
        parts = []
        hidden = True if len(images) < _SEVERAL else None  # None shows the bar on a terminal
        with tqdm(total=len(images), unit="image", desc=self.network, disable=hidden, leave=False) as bar:
            for batch in images.split(_BATCH):
                inputs = transform(batch.expand(-1, 3, -1, -1)).to(device, memory_format=torch.channels_last)
                with torch.no_grad():
                    parts.append(network(inputs).float().cpu())
                bar.update(len(batch))
        embeddings = torch.cat(parts)
        if not bool(embeddings.isfinite().all()):
            raise InvalidArgument("embeddings", f"must be finite, and those of {self.network} are not: restore weights")
        return embeddings

    def to_json(self) -> dict[str, Any]:
        """Return the backbone as :meth:`from_json` takes it."""
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_json(cls, values: Any) -> "Backbone":
        """Return the backbone that :meth:`to_json` wrote.

        Raises:
            InvalidArgument: The values are no such backbone.
        """
        try:
            names, shape = [values[name] for name in ("network", "weights", "sha256")], tuple(values["shape"])
        except (TypeError, KeyError):
            names, shape = [], ()
        is_image = len(shape) == 3 and all(type(size) is int and size > 0 for size in shape)
        if not is_image or not all(isinstance(name, str) for name in names):
            raise InvalidArgument("values", f"must hold network, weights and shape of a backbone, not {values!r:.80}")
        return cls(names[0], names[1], shape, names[2])

    def embed_once(self, images: Tensor) -> Tensor:
        """Return :meth:`embed` of many images, from the cache where they have been embedded before."""
        digest = hashlib.sha256(f"{self.network} {self.sha256} {tuple(images.shape)}".encode())
        digest.update(images.contiguous().numpy().data)
        name = f"{digest.hexdigest()[:32]}.npy"
        with suppress(OSError, InvalidArgument):  # absent, or damaged
            return load_embeddings(cache_folder("embeddings") / name, len(images))
        embeddings = self.embed(images)
        try:
            with atomic_write(cache_folder("embeddings") / name) as file:
                np.save(file, embeddings.numpy())
        except (OSError, FileError) as error:
            _log.warning("embeddings are not kept, and the next start computes them again: %s", error)
        return embeddings


def load_embeddings(path: Path, rows: int, sha256: str = "") -> Tensor:
    """Return the embeddings [N, D] of `rows` images from an .npy file.

    Args:
        path: Path of the file.
        rows: Number of images.
        sha256: Checksum that the file must have; any by default.

    Raises:
        InvalidArgument: The file is no such file.
    """
    try:
        embeddings = load_vectors(path)
    except InvalidArgument as error:
        raise InvalidArgument("embeddings", error.problem) from error
    if sha256 and sha256_of(path) != sha256:
        raise InvalidArgument(
            "embeddings", f"must be those that the run was trained with, and {path} has changed: restore the file"
        )
    if len(embeddings) != rows:
        raise InvalidArgument(
            "embeddings",
            f"must have a row for each of the {rows:,} images, training images before test images and each in the "
            f"order of the paths, and {path} has {len(embeddings):,}",
        )
    return embeddings


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


class _Network(NamedTuple):
    module: nn.Module
    transform: Callable[[Tensor], Tensor]
    place: Path
    sha256: str


@cache
def _load(network: str, weights: str) -> _Network:
    """Return a network with trained weights, without its last linear layer, its transform, and its file of weights."""
    from torchvision.models import get_model, get_model_weights

    _check_network(network)
    try:
        trained: Any = get_model_weights(network)[weights]
    except KeyError as error:
        raise InvalidArgument("embeddings", f"must name weights of {network}, which has no {weights}") from error
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(trained.url).name  # where torchvision keeps them
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # once without unpickling, so that a foreign file is refused; the network reads the same file
            trained.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
            model = get_model(network, weights=trained)
        sha256 = sha256_of(place)
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        problem = (
            f"{place} is damaged or holds something else: remove it"
            if place.exists()
            else f"they cannot be downloaded ({error}): put {trained.url} at {place}"
        )
        raise InvalidArgument(
            "embeddings",
            f"needs the trained weights of {network}, and {problem}, or give an .npy file of embeddings",
        ) from error
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise InvalidArgument("embeddings", f"must be of a network that ends in a linear layer, not of {network}")
    model.set_submodule(layers[-1], nn.Identity())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return _Network(model.eval().to(device, memory_format=torch.channels_last), trained.transforms(), place, sha256)
