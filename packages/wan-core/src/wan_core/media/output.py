"""Output files: checked before anything is computed, written under a temporary name, renamed when whole."""

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from wan_core.drafts import Draft
from wan_core.errors import BackendError, MediaError, RequestError
from wan_core.files import check_place, plain_text

_KINDS = {".mp4": "mp4", ".gif": "gif", ".webp": "webp", ".png": "png"}
_ENCODERS = {"mp4": "libx264", "webp": "libwebp_anim"}
_ENDINGS = "use .mp4, .gif, .webp, or frames/%04d.png for single pictures"
_PATTERN = re.compile(r"([^%]*)%0?([1-9]?)d([^%]*)")
_MAX_GIF_FPS = 50  # a frame lasts a whole number of 1/100 s, and players slow down those shorter than 2/100 s


@dataclass(frozen=True)
class OutputTarget:
    """A checked output. ``path`` is the file, symbolic links resolved; ``kind`` is mp4, gif, webp, png or frames.

    For ``frames`` the name holds a ``%d`` or ``%04d`` that counts from 0.
    """

    path: Path
    kind: str

    def draft(self) -> Draft:
        """Where it is written: a draft of the file, or for ``frames`` of the files in their folder."""
        return Draft(self.path.parent, merge=True) if self.kind == "frames" else Draft(self.path)


def check_output(
    path: str | os.PathLike[str], *, num_frames: int | None = None, fps: float | None = None, has_audio: bool = False
) -> OutputTarget:
    """Check that a video can be written to ``path``; nothing is created and nothing overwritten.

    With ``num_frames`` a single ``.png`` is possible for one frame, and a ``%04d.png`` pattern is refused where frames
    of a longer clip lie. Raises ``RequestError`` for a name that can never work, ``MediaError`` for what the disk says
    (a folder of that name, no permission, no space), ``BackendError`` when the encoder is missing.
    """
    target = _parse(path)
    shown = plain_text(path)
    if target.kind == "png" and num_frames not in (None, 1):
        raise RequestError(f"{shown} holds one picture, not {num_frames} frames; use a pattern such as frames/%04d.png")
    if has_audio and not holds_sound(target.path):
        raise RequestError(f"{shown} cannot hold sound; use .mp4")
    if target.kind == "gif" and fps is not None and fps > _MAX_GIF_FPS:
        raise RequestError(f"a .gif shows at most {_MAX_GIF_FPS} frames per second, got {fps:g}; use .mp4")
    _check_encoder(target.kind)
    check_place(target.path)
    if target.kind == "frames" and num_frames is not None:
        _check_sequence(target, shown, num_frames)
    return target


def is_pattern(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of many pictures, such as ``%04d.png``; in other names a ``%`` is a letter."""
    name = Path(path)
    return "%" in name.name and _KINDS.get(name.suffix.lower()) == "png"


def holds_sound(path: str | os.PathLike[str]) -> bool:
    """Whether a video file of this name holds sound, too."""
    return Path(path).suffix.lower() == ".mp4"


def check_own_files(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Check that each output of a command is a file of its own, and none of its inputs.

    A ``%04d`` in an output stands for any number; an input that is a folder stands for the files in it. Raises
    ``RequestError``.
    """
    seen: dict[object, tuple[Path, str]] = {}
    plain: dict[object, list[tuple[Path, str]]] = {}
    patterns: dict[object, list[tuple[Path, str]]] = {}
    given = ((path, "an input") for each in inputs for path in (each.iterdir() if each.is_dir() else [each]))
    for path, what in chain(given, ((path, "another output") for path in outputs)):
        place, folder = _place(path), _place(path.parent)
        is_many = is_pattern(path)
        near = [*patterns.get(folder, ()), *(plain.get(folder, ()) if is_many else ())]
        alike = [each for each in near if _is_one_of(each[0].name, path.name) or _is_one_of(path.name, each[0].name)]
        if what != "an input" and (place in seen or alike):
            other, role = seen.get(place) or alike[0]
            raise RequestError(
                f"{plain_text(path)} would take the place of {role} of the same command, {plain_text(other)}; choose "
                "another name"
            )
        seen[place] = path, what
        (patterns if is_many else plain).setdefault(folder, []).append((path, what))


def _place(path: Path) -> object:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _is_one_of(pattern: str, name: str) -> bool:
    """Whether a file name is one of those that a ``%04d`` stands for."""
    match = _PATTERN.fullmatch(pattern)
    return match is not None and bool(re.fullmatch(f"{re.escape(match[1])}[0-9]+{re.escape(match[3])}", name))


def _parse(path: str | os.PathLike[str]) -> OutputTarget:
    name = os.fspath(path)
    if not name:
        raise RequestError(f"the output name is empty; {_ENDINGS}")
    shown = plain_text(name)
    try:
        is_folder = stat.S_ISDIR(os.stat(name).st_mode)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        is_folder = False
    except (OSError, ValueError) as error:
        raise RequestError(f"output {shown[:80]} is no valid file name; choose a shorter, plain one") from error
    if is_folder or name.endswith(os.sep):
        raise MediaError(f"output {shown} is a folder; name a file in it, e.g. {plain_text(Path(name, 'video.mp4'))}")
    suffix = Path(name).suffix.lower()
    kind = _KINDS.get(suffix)
    if kind is None:
        raise RequestError(f"output {shown} ends in {plain_text(suffix) or 'no known ending'}; {_ENDINGS}")
    if is_pattern(name):
        if not _PATTERN.fullmatch(Path(name).name):
            raise RequestError(f"output pattern {shown} needs exactly one %d or %04d in the file name")
        kind = "frames"
    return OutputTarget(Path(os.path.realpath(name)), kind)


def _check_encoder(kind: str) -> None:
    codec = _ENCODERS.get(kind)
    if codec is None:
        return
    import av

    try:
        av.Codec(codec, "w")
    except ValueError as error:
        raise BackendError(
            f"this installation of PyAV has no {codec} encoder for .{kind}; install the av package's own wheel, "
            "or write .gif or frames/%04d.png"
        ) from error


def _check_sequence(target: OutputTarget, shown: str, num_frames: int) -> None:
    match = _PATTERN.fullmatch(target.path.name)
    if match is None or not target.path.parent.is_dir():
        return
    numbered = re.compile(f"{re.escape(match[1])}([0-9]+){re.escape(match[3])}")
    for name in sorted(os.listdir(target.path.parent)):
        found = numbered.fullmatch(name)
        if found and int(found[1]) >= num_frames and target.path.name % int(found[1]) == name:
            raise RequestError(
                f"{shown}: {plain_text(name)} of a longer clip lies there and would be mixed with the {num_frames} new "
                "frames; choose another folder or remove the old frames"
            )
