"""The rollout objective against the reference's gradients, and its memory."""

import torch
from torch import Tensor

from poze.objectives import rollout
from wan_core.models import DiTInputs, WanDiT, WanDiTConfig
from wan_core.sampling import Anchors, Denoiser, make_solver

SMALL = WanDiTConfig(
    in_dim=4, out_dim=4, dim=24, ffn_dim=48, num_heads=2, num_layers=2, text_dim=8, text_len=4, freq_dim=16
)


def small_dit() -> WanDiT:
    torch.manual_seed(0)
    dit = WanDiT(SMALL)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return dit


def chain(dit: WanDiT, steps: int, *, keep: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 4, 3, 4, 4, generator=generator)
    extra = torch.randn(1, 5, 24, generator=generator)
    anchors = Anchors.leading(torch.randn(1, 4, 1, 4, 4, generator=generator), 3)
    positive = DiTInputs(context=torch.randn(1, 4, 8, generator=generator), extra_context=extra)
    negative = DiTInputs(context=torch.zeros(1, 4, 8), extra_context=extra)
    denoiser = Denoiser(dit, positive, negative, 2.0, anchors=anchors)
    solver = make_solver("unipc", steps, flow_shift=3.0)
    return rollout(denoiser, solver, noise, anchors=anchors, keep_activations=keep)


def kept_bytes(steps: int, *, keep: bool) -> int:
    """Bytes of distinct tensors that the backward pass of a chain would hold."""
    dit, seen = small_dit(), dict[int, Tensor]()

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        latents = chain(dit, steps, keep=keep)
    del latents
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def test_forgetting_activations_changes_no_gradient() -> None:
    gradients = []
    for keep in (False, True):
        dit = small_dit()
        chain(dit, 4, keep=keep).square().mean().backward()
        gradients.append([parameter.grad for parameter in dit.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second) if first is not None else second is None


def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    latents = 4 * 3 * 4 * 4 * 4  # bytes of one set
    per_step = (kept_bytes(12, keep=False) - kept_bytes(4, keep=False)) / 8
    per_step_kept = (kept_bytes(12, keep=True) - kept_bytes(4, keep=True)) / 8
    assert per_step <= 12 * latents, "only latents, velocities and the solver's sums stay"
    assert per_step_kept > 20 * per_step
