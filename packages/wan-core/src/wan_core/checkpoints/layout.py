"""Where the parts of a model lie in its checkpoint folder: the official layout, or that of diffusers."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from wan_core.checkpoints.families import Family
from wan_core.checkpoints.families.record import WEIGHT_FILES, Places
from wan_core.checkpoints.members import experts_of, members_of
from wan_core.checkpoints.parts import Part
from wan_core.checkpoints.readers.trainer_folders import refuse_trainer_folder
from wan_core.errors import CheckpointError

TOKENIZER_FILES = ("tokenizer.json", "spiece.model")

TOKENIZER_FOLDER = "google/umt5-xxl"
"""Where the official layout has it."""

TOKENIZER = Family(
    name="tokenizer",
    title="the tokenizer",
    files=TOKENIZER_FILES,
    places=Places(official=lambda config, expert: TOKENIZER_FOLDER, diffusers="tokenizer", single="tokenizer"),
)
"""The text encoder's tokenizer, which the text encoder opens."""

_DIT_FILES = (
    "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.bin", "model.safetensors", "model-*.safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class CheckpointLayout:
    """A checkpoint folder; ``model`` is the preset's name, for messages, ``is_bundled`` whether the package has it."""

    folder: Path
    model: str = ""
    is_bundled: bool = False

    def find(self, part: Part) -> Path:
        """The folder or file of a part.

        Besides its official path: the same file as ``.safetensors``, diffusers' folder of that part, and ComfyUI's with
        one file. Raises CheckpointError that says what was looked for.
        """
        self.require([part])
        found = self._search(part)
        if found is None:
            raise CheckpointError(f"{part.family.title} has vanished from {self.folder}")
        return found

    def require(self, parts: Iterable[Part]) -> None:
        """Check that all these parts are there. Raises one CheckpointError for all that are not."""
        if not self.folder.is_dir():
            what = "is a file, not a folder" if self.folder.exists() else "does not exist"
            raise CheckpointError(f"the checkpoint folder {self.folder} {what}{self._remedy()}")
        from wan_core.checkpoints.readers.shards import refuse_incomplete

        missing = self.missing(parts)
        if not missing:
            return
        refuse_trainer_folder(self.folder, [path.name for path in self.folder.iterdir()])
        for below in {each for part in missing if part.family.is_denoiser for each in part.family.where.also}:
            refuse_incomplete(self.folder / below)
        looked_for = "; ".join(
            f"{part.family.title} ({' or '.join(_shown(part, candidate) for candidate in _candidates(part))})"
            for part in missing
        )
        raise CheckpointError(f"{self.folder} lacks {looked_for}{self._nearby(missing)}{self._remedy()}")

    def missing(self, parts: Iterable[Part]) -> list[Part]:
        """Those of the parts that are not there and must be; parts that come from elsewhere are not looked for."""
        return [part for part in parts if not part.is_optional and part.source is None and not self.has(part)]

    def has(self, part: Part) -> bool:
        """Whether a part is there."""
        return self._search(part) is not None

    def _search(self, part: Part) -> Path | None:
        found = self._by_name(part)
        return self._single_dit(part) if found is None and part.family.is_denoiser else found

    def _by_name(self, part: Part) -> Path | None:
        paths = (self.folder / candidate for candidate in _candidates(part))
        return next((path for path in paths if _holds(part, path, is_root=path == self.folder)), None)

    def _single_dit(self, part: Part) -> Path | None:
        """The one file with the network's tensors; of two experts with that word in its name, or with both inside."""
        from wan_core.checkpoints.readers.shards import is_later_shard, without_variants

        for folder in part.family.where.also:
            there = {path.name for pattern in WEIGHT_FILES for path in (self.folder / folder).glob(pattern)}
            files = [self.folder / folder / name for name in sorted(without_variants(there))]
            found = [path for path in files if not is_later_shard(path.name) and _is_of(part, path)]
            if len(found) > 1:
                listed = ", ".join(path.name for path in found[:5])
                raise CheckpointError(
                    f"{self.folder / folder} holds several transformers ({listed}); leave the one to use, or put each "
                    "model into a folder of its own"
                )
            if found:
                return found[0]
        return None

    def _nearby(self, missing: list[Part]) -> str:
        """Whether the folder above or one below is the one that was meant."""
        try:
            around = [self.folder.parent, *sorted(child for child in self.folder.iterdir() if child.is_dir())[:100]]
        except OSError:
            return ""
        for folder in around:
            layout = CheckpointLayout(folder, self.model)
            if all(layout._by_name(part) is not None for part in missing):
                return f"; {folder} has them: is that the one?"
        return ""

    def _remedy(self) -> str:
        if self.is_bundled:
            return "; leave --ckpt-dir out for the weights that come with the package"
        return f"; fetch the model with 'wan download {self.model}'" if self.model else ""


def _candidates(part: Part) -> list[str]:
    """Paths inside a checkpoint folder where a part may be, best first."""
    places = part.family.where
    if part.family.is_denoiser:
        official, second = places.official(part.config, part.expert), part.expert == "low"
        return list(dict.fromkeys([part.file, official, places.second if second else places.diffusers]))
    found: list[str] = []
    for file in (part.file, places.official(part.config, None)):
        found += [file, *([str(Path(file).with_suffix(".safetensors"))] if file.endswith((".pth", ".pt")) else [])]
    return list(dict.fromkeys([*found, places.diffusers, *places.also]))


def _shown(part: Part, candidate: str) -> str:
    if part.family.is_denoiser:
        return f"{candidate}/{_DIT_FILES[0]}" if candidate else _DIT_FILES[0]
    return candidate


def _is_of(part: Part, path: Path) -> bool:
    from wan_core.checkpoints.readers.reader import read_weights

    try:
        members = members_of(read_weights(path)) if path.is_file() else []
    except CheckpointError:
        return False
    members = [member for member in members if member.families[0] == part.family.name]
    return bool(members) and ((part.expert or "") in path.name.lower() or bool(experts_of(members)))


def _holds(part: Part, path: Path, *, is_root: bool) -> bool:
    patterns = _DIT_FILES if is_root else part.family.files
    if path.is_dir():
        return any(fnmatch(child.name, pattern) for child in path.iterdir() for pattern in patterns)
    return path.is_file()
