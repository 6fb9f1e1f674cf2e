"""What of a model is trained: all of it, or its class-conditional part on latents that are computed once."""

from pathlib import Path

import torch

from scnf.data.batches import Batches, EncodedBatches
from scnf.models.base import JointModel
from scnf.models.flow import OnLatents, SemiConditionalFlow
from scnf.training.checkpoint import load_file, load_tensors, load_weights


class Whole:
    """All of a model, trained on the rows themselves.

    Args:
        model: a model.

    Attributes:
        trained: what the training loop takes as its model.
        fixed: whether what the loop is given of a row stays the same for the whole training.
    """

    fixed = False

    def __init__(self, model: JointModel) -> None:
        self.trained = model

    def load_weights(self, path: Path) -> None:
        """Load the weights to start from.

        Raises:
            UserError: they do not fit.
        """
        load_file(self.trained, path)

    def starts_from_data(self, pretrained: bool) -> bool:
        """Whether layers that start from data start from the first batch."""
        return not pretrained

    def encoded(self, batches: Batches, seed: int, autocast: bool) -> Batches:
        """The batches that the loop is given."""
        return batches

    def is_encoded(self, batches: Batches) -> bool:
        """Whether the loop can take these batches."""
        return True

    def on_inputs(self, kept: JointModel) -> JointModel:
        """The model of the rows themselves, for one of the loop's."""
        return kept


class ClassConditionalPart(Whole):
    """The class-conditional part of a flow and its prior, anew, on latents of its trained shared part.

    Args:
        model: a flow.
    """

    fixed = True

    def __init__(self, model: SemiConditionalFlow) -> None:
        self.trained = self._flow = OnLatents(model)

    def load_weights(self, path: Path) -> None:
        """Load the weights of the shared part.

        Raises:
            UserError: they do not fit.
        """
        own, tensors = self.trained.state_dict(), load_tensors(path)[0]
        apart = ("conditional.", "prior.")
        tensors = {name: value for name, value in tensors.items() if not name.startswith(apart)}
        tensors |= {name: value for name, value in own.items() if name.startswith(apart)}
        load_weights(self.trained, tensors, path)

    def starts_from_data(self, pretrained: bool) -> bool:
        """The new part does."""
        return True

    def encoded(self, batches: Batches, seed: int, autocast: bool) -> Batches:
        """Batches of latents, the same ones whenever the seed is the same; torch's generators stay as they are."""
        device = batches.x.device
        copies = min(100, max(1, 10_000 // max(1, len(batches.labelled))))
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                return EncodedBatches(batches, self._flow.on_inputs().eval().latent_rows, copies)

    def is_encoded(self, batches: Batches) -> bool:
        """Whether these are batches of latents."""
        return isinstance(batches, EncodedBatches)

    def on_inputs(self, kept: JointModel) -> JointModel:
        """The flow of inputs with these weights."""
        assert isinstance(kept, OnLatents)
        return kept.on_inputs()
