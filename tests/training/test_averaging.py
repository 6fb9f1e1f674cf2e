"""Batch normalisation under averaged weights."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scnf.data.batches import Batches
from scnf.models.classifier import Classifier
from scnf.objectives import Objective
from scnf.recipes import build
from scnf.runs import Run
from scnf.training import loop
from scnf.training.averaging import averaged_model, renormalize
from scnf.training.checkpoint import load_tensors
from scnf.training.state import State


def images(rows: int = 96) -> Batches:
    torch.manual_seed(0)
    x = torch.randint(0, 17, (rows, 1, 8, 8), dtype=torch.uint8)
    return Batches(x, torch.arange(rows) % 3, 24, 0.5, 0, levels=17, augment=1.0)


def test_renormalize_sets_statistics_to_means_over_batches_of_layer_inputs() -> None:
    batches = images()
    torch.manual_seed(1)
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), 3).eval()
    norm = model.network[2]
    seen: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    before = torch.get_rng_state()
    renormalize(model, batches, count=5)
    handle.remove()
    assert len(seen) == 5 and all(len(inputs) == 24 + batches.num_moved + batches.num_views for inputs in seen)
    torch.testing.assert_close(norm.running_mean, torch.stack([inputs.mean(dim=0) for inputs in seen]).mean(dim=0))
    torch.testing.assert_close(norm.running_var, torch.stack([inputs.var(dim=0) for inputs in seen]).mean(dim=0))
    assert torch.equal(torch.get_rng_state(), before) and not model.training and norm.momentum == 0.1
    kept = copy.deepcopy(model.state_dict())
    renormalize(model, batches, count=5)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_averaged_weights_are_evaluated_with_statistics_of_their_own(tmp_path: Path) -> None:
    batches, run = images(), Run(tmp_path)
    torch.manual_seed(1)
    model = build("classifier", (1, 8, 8), 3, hidden=8, norm="batch")
    evaluated: list[Any] = []

    def evaluate(kept: Any) -> dict[str, float]:
        evaluated.append(copy.deepcopy(kept))
        return {"accuracy": 0.0, "ece": 0.0}

    loop.train(
        State(model, torch.optim.Adam(model.parameters(), lr=0.1), averaged_model(model, 0.9)),
        Objective(),
        batches,
        run,
        loop.Plan(epochs=2, ema=0.9),
        evaluate=evaluate,
        log=lambda line: None,
    )
    of_steps = load_tensors(run.checkpoint("last"))[0]
    best = load_tensors(run.checkpoint("best"))[0]
    own = copy.deepcopy(evaluated[-1])
    renormalize(own, batches)
    for name, value in own.state_dict().items():
        assert torch.equal(value, evaluated[-1].state_dict()[name]) and torch.equal(value, best[name])
        if "running" in name:
            assert not torch.allclose(value, of_steps[f"model.{name}"], rtol=0.1)


def test_renormalize_leaves_models_without_batch_normalisation_alone() -> None:
    model = build("scnf-digits", (1, 8, 8), 3, levels=17, channels=8, steps=1)
    model.register_forward_pre_hook(lambda _module, inputs: (_ for _ in ()).throw(AssertionError("it was run")))
    renormalize(model, images())
