"""Where the parts of a model lie in its checkpoint folder: the official layout, or that of diffusers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wan_core.checkpoints.detect import family_of
from wan_core.checkpoints.readers.reader import read_weights
from wan_core.errors import CheckpointError

Part = Literal["dit", "vae", "text_encoder", "tokenizer", "image_encoder"]

PART_NAMES: Mapping[Part, str] = {
    "dit": "the diffusion transformer",
    "vae": "the VAE",
    "text_encoder": "the text encoder",
    "tokenizer": "the tokenizer",
    "image_encoder": "the CLIP image encoder",
}
DIFFUSERS_FOLDERS: Mapping[Part, str] = {
    "vae": "vae",
    "text_encoder": "text_encoder",
    "tokenizer": "tokenizer",
    "image_encoder": "image_encoder",
}
DIFFUSERS_DITS = {"": "transformer", "high_noise_model": "transformer", "low_noise_model": "transformer_2"}
"""The diffusers folder of each official one; the second transformer is the low-noise expert."""

SINGLE_FILE_FOLDERS: Mapping[Part, tuple[str, ...]] = {
    "dit": ("", "diffusion_models", "unet"),
    "text_encoder": ("text_encoders",),
    "image_encoder": ("clip_vision",),
}
"""Where ComfyUI keeps its single files, and where people put one: beside the other parts."""

_WEIGHTS = ("*.safetensors", "*.pth", "*.pt", "*.bin", "*.gguf")
_DIT_WEIGHTS = (
    "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.bin", "model.safetensors", "model-*.safetensors",
)  # fmt: skip
_EXPERT_WORDS = {"high_noise_model": "high", "low_noise_model": "low"}


@dataclass(frozen=True)
class CheckpointLayout:
    """A checkpoint folder; ``model`` is the preset's name, for messages."""

    folder: Path
    model: str = ""

    def find(self, part: Part, name: str) -> Path:
        """The folder or file of a part; ``name`` is its official path inside the folder, ``""`` for the folder itself.

        Also found: the same file as ``.safetensors``, diffusers' folder of that part, and ComfyUI's with one file.
        Raises CheckpointError that says what was looked for.
        """
        self.require([(part, name)])
        found = self._search(part, name)
        if found is None:
            raise CheckpointError(f"{PART_NAMES[part]} has vanished from {self.folder}")
        return found

    def dit(self, name: str = "") -> Path:
        """The folder of a DiT: ``""``, ``high_noise_model`` or ``low_noise_model``. Raises CheckpointError."""
        return self.find("dit", name)

    def vae(self, name: str) -> Path:
        """The file or folder of the VAE. Raises CheckpointError."""
        return self.find("vae", name)

    def text_encoder(self, name: str) -> Path:
        """The file or folder of the text encoder. Raises CheckpointError."""
        return self.find("text_encoder", name)

    def tokenizer(self, name: str) -> Path:
        """The folder of the tokenizer. Raises CheckpointError."""
        return self.find("tokenizer", name)

    def image_encoder(self, name: str) -> Path:
        """The file or folder of the CLIP tower. Raises CheckpointError."""
        return self.find("image_encoder", name)

    def require(self, parts: Iterable[tuple[Part, str]]) -> None:
        """Check that all these parts are there. Raises one CheckpointError for all that are not."""
        if not self.folder.is_dir():
            what = "is a file, not a folder" if self.folder.exists() else "does not exist"
            raise CheckpointError(f"the checkpoint folder {self.folder} {what}{self._remedy()}")
        missing = self.missing(parts)
        if not missing:
            return
        looked_for = "; ".join(
            f"{PART_NAMES[part]} ({' or '.join(_shown(part, candidate) for candidate in _candidates(part, name))})"
            for part, name in missing
        )
        raise CheckpointError(f"{self.folder} lacks {looked_for}{self._nearby(missing)}{self._remedy()}")

    def missing(self, parts: Iterable[tuple[Part, str]]) -> list[tuple[Part, str]]:
        """Those of the parts that are not there."""
        return [(part, name) for part, name in parts if self._search(part, name) is None]

    def _search(self, part: Part, name: str) -> Path | None:
        found = self._by_name(part, name)
        return self._single_dit(name) if found is None and part == "dit" and name in DIFFUSERS_DITS else found

    def _by_name(self, part: Part, name: str) -> Path | None:
        paths = (self.folder / candidate for candidate in _candidates(part, name))
        return next((path for path in paths if _holds(part, path, is_root=path == self.folder)), None)

    def _single_dit(self, name: str) -> Path | None:
        """The one file whose tensors are those of a transformer; of two experts the one with that word in its name."""
        word = _EXPERT_WORDS.get(name, "")
        for folder in SINGLE_FILE_FOLDERS["dit"]:
            files = sorted(path for pattern in _WEIGHTS for path in (self.folder / folder).glob(pattern))
            found = [path for path in files if word in path.name.lower() and _is_dit(path)]
            if len(found) > 1:
                names = ", ".join(path.name for path in found[:5])
                raise CheckpointError(
                    f"{self.folder / folder} holds several transformers ({names}); leave the one to use, or put each "
                    "model into a folder of its own"
                )
            if found:
                return found[0]
        return None

    def _nearby(self, missing: list[tuple[Part, str]]) -> str:
        """Whether the folder above or one below is the one that was meant."""
        try:
            around = [self.folder.parent, *sorted(child for child in self.folder.iterdir() if child.is_dir())[:100]]
        except OSError:
            return ""
        for folder in around:
            layout = CheckpointLayout(folder, self.model)
            if all(layout._by_name(part, name) is not None for part, name in missing):
                return f"; {folder} has them: is that the one?"
        return ""

    def _remedy(self) -> str:
        return f"; fetch the model with 'wan download {self.model}'" if self.model else ""


def _candidates(part: Part, name: str) -> list[str]:
    """Paths inside a checkpoint folder where a part may be, best first."""
    if part == "dit":
        return [name, *([DIFFUSERS_DITS[name]] if name in DIFFUSERS_DITS else [])]
    found = [name]
    if Path(name).suffix in (".pth", ".pt"):
        found.append(str(Path(name).with_suffix(".safetensors")))
    return [*found, DIFFUSERS_FOLDERS[part], *SINGLE_FILE_FOLDERS.get(part, ())]


def _shown(part: Part, candidate: str) -> str:
    if part == "dit":
        return f"{candidate}/{_DIT_WEIGHTS[0]}" if candidate else _DIT_WEIGHTS[0]
    return candidate


def _is_dit(path: Path) -> bool:
    try:
        return path.is_file() and family_of(read_weights(path)) == "dit"
    except CheckpointError:
        return False


def _holds(part: Part, path: Path, *, is_root: bool) -> bool:
    if part == "tokenizer":
        return path.is_file() or any((path / name).is_file() for name in ("tokenizer.json", "spiece.model"))
    patterns = _DIT_WEIGHTS if is_root else _WEIGHTS
    return path.is_file() or (path.is_dir() and any(next(path.glob(pattern), None) for pattern in patterns))
