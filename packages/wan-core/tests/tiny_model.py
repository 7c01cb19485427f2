"""A tiny preset with random weights, and a log of what is loaded when; for tests of requests on their way."""

import torch
from torch import Tensor, nn

from wan_core.models import VideoVAE
from wan_core.pipeline import Pipeline
from wan_core.presets import Preset, get_preset
from wan_core.runtime import Between, Placed
from wan_core.tasks import Components, Experts

from .networks import build

CPU = torch.device("cpu")


class FakeText(nn.Module):
    """States that only depend on the prompt; remembers what it was asked."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.asked: list[str] = []

    def forward(self, prompts: list[str]) -> list[Tensor]:
        self.asked += prompts
        return [torch.full((len(prompt) % 5 + 1, self.dim), len(prompt) / 100) for prompt in prompts]


class Model:
    """A preset with random weights, and a log of what was loaded when."""

    def __init__(self, name: str, between: Between = Between.KEEP) -> None:
        torch.manual_seed(0)
        self.preset: Preset = get_preset(name)
        self.log: list[str] = []
        self.text = FakeText(self.preset.dit.text_dim)
        vae = build(self.preset.vae).eval()
        vae.reset_parameters(0)
        self.vae: VideoVAE = vae
        dit: Placed[nn.Module] | Experts[Placed[nn.Module]]
        if self.preset.has_experts:
            dit = Experts(high=self._placed("high", between), low=self._placed("low", between))
        else:
            dit = self._placed("dit", between)
        components = Components(
            device=CPU,
            parts={
                "text_encoder": Placed(lambda _: self.text, CPU),
                "vae": Placed(lambda _: self.vae, CPU),
                "dit": dit,
            },
        )
        self.pipeline = Pipeline(self.preset, components, latent_spec=self.preset.latent_spec)

    def _placed(self, name: str, between: Between) -> Placed[nn.Module]:
        def load(_: torch.device) -> nn.Module:
            self.log.append(name)
            return build(self.preset.dit).eval()

        return Placed(load, CPU, between=between)


def small(**values: object) -> dict[str, object]:
    """A request of a few tokens."""
    return {"prompt": "p", "num_frames": 5, "width": 32, "height": 32, "num_inference_steps": 2, "seed": 1, **values}
