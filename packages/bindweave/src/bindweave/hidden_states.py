"""The language model's states of a prompt and its pictures: how they are made, and the files that hold them.

Kept is the output after the final norm for the whole sequence: template, prompt, pictures, header of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core import CheckpointError, RequestError
from wan_core.files import plain_text

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

    from wan_core.checkpoints import TensorSource

MAX_PICTURES = 4
"""The language model sees the first pictures, as many as the video has reference frames."""

_PLACEHOLDER: Any = object()  # for a picture, of which the markup needs the length alone

TENSOR = "hidden_states"
"""The name of the states in a file."""

# The original scales pictures down before Qwen's own resizing does: by more, where they have more pixels than 720p.
_LARGE, _SCALE_LARGE, _SCALE = 1280 * 720, 0.3, 0.75


@dataclass(frozen=True)
class SeenPictures:
    """Pictures as the language model takes them in: ``embeddings`` [tokens, dim], and each one's grid of patches."""

    embeddings: Tensor
    grids: tuple[tuple[int, int, int], ...]
    merge: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each picture."""
        return [frames * rows * columns // self.merge**2 for frames, rows, columns in self.grids]


def scaled(picture: Image) -> Image:
    """A picture at the size in which the original hands it over: by 0.75, or 0.3 above 1280 x 720 pixels, bicubic.

    Raises RequestError for one so small that nothing is left.
    """
    from wan_core.media import resize_by_rows

    factor = _SCALE_LARGE if picture.width * picture.height > _LARGE else _SCALE
    width, height = int(picture.width * factor), int(picture.height * factor)
    if min(width, height) < 1:
        raise RequestError(f"a picture of {picture.width} x {picture.height} is too small; give a larger one")
    return resize_by_rows(picture, (width, height))


def see_pixels(network: nn.Module, pixels: Tensor, grids: Sequence[Sequence[int]]) -> SeenPictures:
    """The vision half's tokens of rows of patches [patches, C * frames * patch^2] in grids (frames, rows, columns)."""
    import torch

    parts: Any = network
    weight = parts.visual.patch_embed.proj.weight
    grid = torch.tensor([list(each) for each in grids], device=weight.device)
    seen = parts.visual(pixels.to(weight.device, weight.dtype), grid_thw=grid)
    embeddings = getattr(seen, "pooler_output", seen)  # transformers 4 gives the tensor itself
    shapes = tuple((int(f), int(h), int(w)) for f, h, w in grids)
    return SeenPictures(embeddings, shapes, int(parts.visual.spatial_merge_size))


def see(network: nn.Module, pictures: Sequence[Image]) -> SeenPictures:
    """The first four pictures as tokens, whatever prompt they will stand with. Raises RequestError."""
    import torch

    from wan_core.llm import picture_patches

    parts: Any = network
    vision = parts.config.vision_config
    shape = {"patch": vision.patch_size, "merge": vision.spatial_merge_size, "frames": vision.temporal_patch_size}
    rows, grids = zip(*(picture_patches(scaled(each), **shape) for each in pictures[:MAX_PICTURES]), strict=True)
    return see_pixels(network, torch.cat(rows), grids)


def token_ids(tokenizer: Any, prompt: str, lengths: Sequence[int]) -> Tensor:
    """The ids [1, S] of a prompt and, behind it, pictures of these lengths, in the template of Qwen2.5-VL.

    Raises RequestError for a prompt that holds marks of the template.
    """
    import torch

    from wan_core.llm import PICTURE_TOKEN, Message, chat_markup

    marks = [token for token in tokenizer.get_added_vocab() if token in prompt]
    if marks:
        raise RequestError(f"the prompt must not hold {marks[0]}, a mark of the language model; leave it out")
    text = chat_markup([Message("user", (prompt, *[_PLACEHOLDER] * len(lengths)))], lengths)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    if int((ids == tokenizer.convert_tokens_to_ids(PICTURE_TOKEN)).sum()) != sum(lengths):
        raise CheckpointError(f"the tokenizer does not know {PICTURE_TOKEN}; take that of Qwen2.5-VL")
    return ids


def positions(is_picture: Tensor, seen: SeenPictures) -> Tensor:
    """Positions [3, 1, S] in time, rows and columns of tokens of which ``is_picture`` [1, S] tells the pictures'.

    Text counts up on all three; a picture that begins at p is at time p, at p + row and p + column of its merged grid,
    and what follows goes on after the largest of them.
    """
    import torch

    found: list[Tensor] = []
    place, index = 0, 0
    grids = iter(seen.grids)
    flags = is_picture[0].tolist()
    while index < len(flags):
        if flags[index]:
            frames, rows, columns = next(grids)
            sides = (frames, rows // seen.merge, columns // seen.merge)
            found.append(torch.stack(torch.meshgrid(*map(torch.arange, sides), indexing="ij")).flatten(1) + place)
            place, index = place + max(sides), index + sides[0] * sides[1] * sides[2]
        else:
            found.append(torch.full((3, 1), place))
            place, index = place + 1, index + 1
    return torch.cat(found, dim=1)[:, None]


def states_of(network: nn.Module, ids: Tensor, seen: SeenPictures) -> Tensor:
    """The states [1, S, dim] after the final norm of ids [1, S] on any device, in the network's dtype."""
    parts: Any = network
    embeddings = parts.language_model.embed_tokens.weight
    ids = ids.to(embeddings.device)
    is_picture = ids == parts.config.image_token_id
    tokens = parts.language_model.embed_tokens(ids)
    tokens = tokens.masked_scatter(is_picture[..., None], seen.embeddings.to(tokens))
    states: Tensor = parts.language_model(
        inputs_embeds=tokens, position_ids=positions(is_picture, seen).to(ids.device), use_cache=False
    ).last_hidden_state
    return states


def extract(
    network: nn.Module, tokenizer: Any, pictures: Sequence[Image], prompts: Sequence[str]
) -> tuple[Tensor, ...]:
    """The states [1, S, dim], bfloat16 on the CPU, of each prompt with the same pictures, which are seen once.

    The first four of 1 or more pictures are used. Raises RequestError for pictures or prompts that cannot be.
    """
    import torch

    if not pictures:
        raise RequestError("the language model needs a picture; give 1 to 4")
    with torch.inference_mode():
        seen = see(network, pictures)
        made = [states_of(network, token_ids(tokenizer, prompt, seen.lengths), seen) for prompt in prompts]
    return tuple(states.to("cpu", torch.bfloat16).clone() for states in made)


def read_hidden_states(path: str | Path) -> Tensor:
    """The states [1, S, dim] of a file: safetensors of ``bindweave extract``, or the original's ``.pt``.

    A ``.pt`` that is not there but has a ``.safetensors`` beside it is read from that. Raises CheckpointError for a
    file that is missing, unsafe to read or holds something else.
    """
    source, name = _states_in(path)
    states = source.read(name).clone()
    if not bool(states.isfinite().all()):
        raise CheckpointError(f"{plain_text(source.path)} holds values that are not finite; extract it again")
    return states


def count_states(path: str | Path) -> int:
    """How many states S a file has, without reading them. Raises as :func:`read_hidden_states`."""
    source, name = _states_in(path)
    return int(source.info(name).shape[1])


def _states_in(path: str | Path) -> tuple[TensorSource, str]:
    """A file of states, and the name that they have there."""
    from wan_core.checkpoints import read_weights

    path = Path(path)
    other = path.with_suffix(".safetensors")
    source = read_weights(other if not path.exists() and other.exists() else path)
    names = list(source)
    if len(names) != 1:
        raise CheckpointError(f"{plain_text(source.path)} holds {len(names)} tensors; hidden states are one")
    info = source.info(names[0])
    if len(info.shape) != 3 or info.shape[0] != 1 or min(info.shape) < 1 or not info.dtype.is_floating_point:
        raise CheckpointError(
            f"{plain_text(source.path)} holds no hidden states: {list(info.shape)} of {info.dtype} is not [1, S, dim]"
        )
    return source, names[0]


def write_hidden_states(path: Path, states: Tensor, metadata: Mapping[str, str]) -> None:
    """Write states as safetensors, whole or not at all; the same ones give the same bytes.

    Raises MediaError when the disk refuses.
    """
    from wan_core.checkpoints import MemorySource, write_file

    write_file(MemorySource({TENSOR: states.contiguous()}, metadata=dict(metadata)), path)


def is_current(path: Path, digest: str) -> bool:
    """Whether a file of states is there that was made of the same things; a damaged one is not."""
    from wan_core.checkpoints import read_weights

    try:
        if not path.is_file() or read_weights(path).metadata.get("digest") != digest:
            return False
        read_hidden_states(path)
        return True
    except CheckpointError:
        return False
