"""Select the trained part of a model, either all of it or its class-conditional part on precomputed latents."""

from pathlib import Path

import torch

from scnf.data.batches import Batches, EncodedBatches
from scnf.models.base import JointModel
from scnf.models.flow import LatentFlow, SemiConditionalFlow
from scnf.training.checkpoint import load_file, load_tensors, load_weights


class WholeModel:
    """A subject of training that is the whole model, on the rows themselves.

    Args:
        model: Model to train.

    Attributes:
        model: Model that the training loop trains.
        fixed: Whether the representations of the rows stay fixed throughout the training.
    """

    fixed = False

    def __init__(self, model: JointModel) -> None:
        self.model = model

    def load_weights(self, path: Path) -> None:
        """Load the initial weights from a file.

        Raises:
            UserError: The weights do not fit the model.
        """
        load_file(self.model, path)

    def starts_from_data(self, pretrained: bool) -> bool:
        """Return whether the first batch initialises the layers that need data-dependent initialisation."""
        return not pretrained

    def encoded(self, batches: Batches, seed: int, autocast: bool) -> Batches:
        """Return the batches on which the training loop trains."""
        return batches

    def is_encoded(self, batches: Batches) -> bool:
        """Return whether the training loop can train on these batches."""
        return True

    def input_model(self, model: JointModel) -> JointModel:
        """Turn a model of the training loop into a model of the rows themselves."""
        return model


class ClassConditionalPart(WholeModel):
    """A subject of training that is the class-conditional part and the prior of a flow, from new initial weights.

    The training data are latents of the flow's shared part, whose weights are already trained.

    Args:
        model: Flow whose class-conditional part is trained.
    """

    fixed = True

    def __init__(self, model: SemiConditionalFlow) -> None:
        self.model = self._flow = LatentFlow(model)

    def load_weights(self, path: Path) -> None:
        """Load the weights of the shared part from a file.

        Raises:
            UserError: The weights do not fit the flow.
        """
        initial, tensors = self.model.state_dict(), load_tensors(path)[0]
        prefixes = ("conditional.", "prior.")
        tensors = {name: value for name, value in tensors.items() if not name.startswith(prefixes)}
        tensors |= {name: value for name, value in initial.items() if name.startswith(prefixes)}
        load_weights(self.model, tensors, path)

    def starts_from_data(self, pretrained: bool) -> bool:
        """Return true, because the class-conditional part is new even if the shared part is pretrained."""
        return True

    def encoded(self, batches: Batches, seed: int, autocast: bool) -> Batches:
        """Return batches of latents, which are a function of the seed, and leave torch's generators unchanged."""
        device = batches.device
        copies = min(100, max(1, 10_000 // max(1, len(batches.labelled))))
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                return EncodedBatches(batches, self._flow.input_flow().eval().latent_rows, copies)

    def is_encoded(self, batches: Batches) -> bool:
        """Return whether these are batches of latents."""
        return isinstance(batches, EncodedBatches)

    def input_model(self, model: JointModel) -> JointModel:
        """Return the flow of the rows themselves, with the same weights."""
        assert isinstance(model, LatentFlow)
        return model.input_flow()
