"""A tiny model with random weights that counts what it does, and pictures."""

import torch
from PIL import Image
from torch import Tensor, nn

from wan_core.models import VideoVAE, WanDiT
from wan_core.pipeline import Pipeline
from wan_core.runtime import Placed
from wan_core.tasks import Components
from wan_mi2v import MI2VRequest
from wan_mi2v.inputs import MI2VInputs
from wan_mi2v.presets import TINY_MI2V

CPU = torch.device("cpu")


class FakeText(nn.Module):
    """States that depend on the prompt's length only; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def forward(self, prompts: list[str]) -> list[Tensor]:
        self.asked += prompts
        return [torch.full((3, TINY_MI2V.dit.text_dim), len(prompt) / 100) for prompt in prompts]


class CountingVAE(nn.Module):
    """A VAE that remembers the shapes it encoded."""

    def __init__(self, vae: VideoVAE) -> None:
        super().__init__()
        self.vae = vae
        self.encoded: list[tuple[int, ...]] = []

    def encode(self, video: Tensor) -> Tensor:
        self.encoded.append(tuple(video.shape))
        with torch.no_grad():
            latents: Tensor = self.vae.encode(video)
        return latents

    def __getattr__(self, name: str) -> object:
        return super().__getattr__(name) if name in {"vae"} else getattr(self.vae, name)


class Model:
    """The tiny preset with random weights, and a log of what was loaded."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        vae = VideoVAE(TINY_MI2V.vae).eval()
        vae.reset_parameters(0)
        self.vae, self.text, self.log = CountingVAE(vae), FakeText(), list[str]()
        components = Components(
            device=CPU,
            parts={
                "text_encoder": Placed(lambda _: self.text, CPU),  # type: ignore[arg-type,return-value]
                "vae": Placed(lambda _: self.vae, CPU),  # type: ignore[arg-type,return-value]
                "dit": Placed(self._network, CPU),
            },
        )
        self.pipeline = Pipeline(TINY_MI2V, components, latent_spec=TINY_MI2V.latent_spec)

    def _network(self, _: torch.device) -> nn.Module:
        self.log.append("dit")
        return WanDiT(TINY_MI2V.dit).eval()

    def plan(self, **values: object) -> MI2VInputs:
        inputs = self.pipeline.plan(request(**values))
        assert isinstance(inputs, MI2VInputs)
        return inputs

    def latents(self, inputs: MI2VInputs) -> Tensor:
        """The denoised latents of a planned request."""
        found: list[Tensor] = []
        list(self.pipeline.stream(inputs, on_latents=found.append))
        return found[0]


def request(**values: object) -> MI2VRequest:
    """A request of a few tokens."""
    small = {"prompt": "p", "num_frames": 13, "width": 32, "height": 32, "num_inference_steps": 2, "seed": 1}
    return MI2VRequest(**{**small, **values})  # type: ignore[arg-type]


def colours(count: int, size: tuple[int, int] = (40, 40)) -> tuple[Image.Image, ...]:
    """Pictures that differ."""
    return tuple(
        Image.linear_gradient("L").resize(size).point(lambda v, i=i: (v * (i + 2)) % 256).convert("RGB")
        for i in range(count)
    )
