"""Averaged weights that begin late and follow a part of a model, and the optimizers of a part."""

import torch
from torch import nn

from wan_core.training import AveragedWeights, build_optimizers


def test_averages_begin_at_a_step_and_follow_chosen_weights_when_they_change() -> None:
    model = nn.ModuleDict({"one": nn.Linear(1, 1, bias=False), "other": nn.Linear(1, 1)})
    average = AveragedWeights(model, 0.5, start=2, every=2, chosen=lambda name: name.startswith("one."))
    assert set(average.tensors) == {"one.weight"}
    found = []
    for step in range(5):
        with torch.no_grad():
            model["one"].weight.fill_(float(step))
        average.update(model)
        found.append(average.tensors["one.weight"].item())
    # A copy at step 0, none at 1; from 2 on the mean of the old and the new at every second step.
    assert found == [0, 0, 1, 1, 2.5]
    before = model["other"].weight.clone()
    average.exchange(model)
    assert (model["one"].weight.item(), average.tensors["one.weight"].item()) == (2.5, 4)
    assert torch.equal(model["other"].weight, before)


def test_the_betas_of_adamw_can_be_chosen() -> None:
    (optimizer,) = build_optimizers(nn.Linear(2, 2), "adamw", 1e-3, betas=(0.0, 0.999))
    assert optimizer.param_groups[0]["betas"] == (0.0, 0.999)
