"""Encoders of pictures and texts, told by what lies in a file or folder: CLIP of Wan, CLIP, SigLIP, DINOv2, GME."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wan_core import CheckpointError, RequestError
from wan_core.files import folder_files, plain_text

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from bindweave.evaluation.faces import FaceEncoder

Array = NDArray[np.float32]

_BATCH = 16
_TWO_HALVES = {"clip": "CLIPModel", "siglip": "SiglipModel"}
_PICTURES_ONLY = {"dinov2": "Dinov2Model"}
_OF_WAN = ("clip_vision_model", "i2v", "flf2v")  # diffusers' folder, and the official ones that hold a CLIP
_KNOWN = "CLIP, SigLIP, DINOv2 and GME in the folders of transformers, the CLIP of Wan2.1, or ONNX files of faces"
_VIT_L14 = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "image_size": 224,
    "hidden_act": "quick_gelu",
}


class ImageEncoder(Protocol):
    """What turns pictures into vectors that are near each other where the pictures are."""

    def embed_images(self, images: Sequence[Image]) -> Array:
        """Vectors [N, D] of RGB pictures of any sizes; their lengths do not matter."""


@runtime_checkable
class TextImageEncoder(ImageEncoder, Protocol):
    """One whose vectors of texts lie in the same space."""

    def embed_texts(self, texts: Sequence[str]) -> Array:
        """Vectors [N, D]."""


class WanCLIP:
    """The image tower of Wan2.1's CLIP: the class token after all blocks and the last norm.

    Pictures are stretched to a square, as Wan does. Raises CheckpointError.
    """

    def __init__(self, path: Path, device: torch.device | str) -> None:
        import torch

        from wan_core.checkpoints import CLIP, find_weights, load_model, native_weights

        found = find_weights(path).of(CLIP.name)
        if len(found) != 1:
            raise CheckpointError(f"{plain_text(path)} holds {len(found)} encoders of pictures; known are {_KNOWN}")
        native = native_weights(found[0].source, CLIP)
        config = CLIP.read_config(found[0].path, native)
        self._device = device
        self._tower = load_model(config, native, family=CLIP, dtype=torch.float32, device=device)

    def embed_images(self, images: Sequence[Image]) -> Array:
        import torch

        from wan_core.media import image_to_tensor
        from wan_core.models import clip_pixels

        side = self._tower.config.image_size
        vectors = []
        for batch in _batches(images):
            pixels = torch.stack([image_to_tensor(each.resize((side, side))) for each in batch]).to(self._device)
            with torch.inference_mode():
                states = self._tower.hidden_states(clip_pixels(pixels, side), self._tower.config.num_layers)
                vectors.append(self._tower.post_layernorm(states[:, 0]).float().cpu())
        return _joined(vectors)


class PretrainedEncoder:
    """DINOv2 of a folder of transformers, with its own preparation of pictures. Raises CheckpointError, ConfigError."""

    def __init__(self, folder: Path, device: torch.device | str) -> None:
        from wan_core.hub import load_beside, load_pretrained

        kinds = {**_TWO_HALVES, **_PICTURES_ONLY}
        self._network = load_pretrained(str(folder), kinds, what="an encoder").to(device).float()
        # The kind without torchvision, so that the numbers do not hang on what is installed.
        kind: dict[str, Any] = (
            {"backend": "pil"} if int(version("transformers").split(".")[0]) >= 5 else {"use_fast": False}
        )
        self._processor = load_beside(str(folder), "AutoImageProcessor", "preprocessor_config.json", **kind)
        self._device = device

    @property
    def config(self) -> Any:
        """That of transformers."""
        return self._network.config

    def embed_images(self, images: Sequence[Image]) -> Array:
        return _joined([self._pictures(batch) for batch in _batches(images)])

    def _pictures(self, images: list[Image]) -> torch.Tensor:
        import torch

        pixels = self._processor(images=images, return_tensors="pt")["pixel_values"].to(self._device)
        with torch.inference_mode():
            return self._features(pixels)

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        return _pooled(self._network(pixel_values=pixels))


class TwoHalves(PretrainedEncoder):
    """CLIP or SigLIP of a folder of transformers: pictures and texts in one space; a text that is too long is cut."""

    def __init__(self, folder: Path, device: torch.device | str) -> None:
        from wan_core.hub import load_beside

        super().__init__(folder, device)
        self._tokenizer = load_beside(str(folder), "AutoTokenizer", "tokenizer")

    @property
    def is_aesthetic_tower(self) -> bool:
        """Whether it has the dims of OpenAI's ViT-L/14, which the benchmark's AestheticScore was trained on."""
        vision = getattr(self.config, "vision_config", None)
        has_dims = all(getattr(vision, key, None) == value for key, value in _VIT_L14.items())
        return self.config.model_type == "clip" and getattr(self.config, "projection_dim", None) == 768 and has_dims

    @property
    def dim(self) -> int:
        """Numbers in a vector; 0 where its config does not say."""
        return int(getattr(self.config, "projection_dim", 0))

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        return _pooled(self._network.get_image_features(pixel_values=pixels))

    def embed_texts(self, texts: Sequence[str]) -> Array:
        import torch

        longest = self.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        ).to(self._device)
        kept = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
        with torch.inference_mode():
            return _joined([_pooled(self._network.get_text_features(**kept))])


class GME:
    """GME-Qwen2-VL of a folder. Raises CheckpointError, ConfigError."""

    def __init__(self, folder: Path, device: torch.device | str) -> None:
        from wan_core.llm import LocalEmbedder

        self._embedder = LocalEmbedder(folder, device)

    @property
    def is_benchmark(self) -> bool:
        """Whether it is the one of 7 billion parameters, which GmeScore is computed with."""
        return self._embedder.dim == 3584

    def embed_images(self, images: Sequence[Image]) -> Array:
        return _joined([self._embedder.embed_images(images)])

    def embed_texts(self, texts: Sequence[str]) -> Array:
        return _joined([self._embedder.embed_texts(texts)])


def open_encoder(place: Path, device: torch.device | str) -> ImageEncoder | FaceEncoder:
    """The encoder in a file or folder. Raises RequestError for a place that is none, CheckpointError, ConfigError."""
    from bindweave.evaluation.faces import FaceEncoder
    from wan_core.checkpoints import read_json

    if not place.exists():
        raise RequestError(f"encoder {plain_text(place)} does not exist; fetch it and name its file or folder")
    config = place / "config.json"
    kind = read_json(config).get("model_type") if config.is_file() else None
    if kind in _TWO_HALVES:
        return TwoHalves(place, device)
    if kind in _PICTURES_ONLY:
        return PretrainedEncoder(place, device)
    if kind == "qwen2_vl":
        return GME(place, device)
    if place.is_dir() and folder_files(place, (".onnx",)):
        return FaceEncoder(place, "cpu" if str(device) == "cpu" else "auto")
    if kind not in (None, *_OF_WAN):
        raise CheckpointError(f"{plain_text(place)} is a {plain_text(kind)[:60]}; encoders are {_KNOWN}")
    return WanCLIP(place, device)


def _batches(images: Sequence[Image]) -> Iterator[list[Image]]:
    for start in range(0, len(images), _BATCH):
        yield list(images[start : start + _BATCH])


def _pooled(output: Any) -> torch.Tensor:
    """The vectors: transformers 4 gives those of pictures and texts as they are."""
    pooled: torch.Tensor = getattr(output, "pooler_output", output)
    return pooled.float().cpu()


def _joined(vectors: Sequence[torch.Tensor]) -> Array:
    import torch

    return np.asarray(torch.cat(list(vectors)).numpy(), dtype=np.float32)
