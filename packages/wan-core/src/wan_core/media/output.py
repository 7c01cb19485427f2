"""Output files: checked before anything is computed, written under a temporary name, renamed when whole."""

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from wan_core.errors import BackendError, MediaError, RequestError
from wan_core.files import draft_of, plain_text, write_error

_KINDS = {".mp4": "mp4", ".gif": "gif", ".webp": "webp", ".png": "png"}
_ENCODERS = {"mp4": "libx264", "webp": "libwebp_anim"}
_ENDINGS = "use .mp4, .gif, .webp, or frames/%04d.png for single pictures"
_PATTERN = re.compile(r"([^%]*)%0?([1-9]?)d([^%]*)")
_MAX_GIF_FPS = 50  # a frame lasts a whole number of 1/100 s, and players slow down those shorter than 2/100 s
_PROBE_BYTES = 65536


@dataclass(frozen=True)
class OutputTarget:
    """A checked output. ``path`` is the file, symbolic links resolved; ``kind`` is mp4, gif, webp, png or frames.

    For ``frames`` the name holds a ``%d`` or ``%04d`` that counts from 0.
    """

    path: Path
    kind: str

    def frame_name(self, index: int) -> str:
        """File name of frame ``index`` of a ``frames`` output."""
        return self.path.name % index


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
    if has_audio and target.kind != "mp4":
        raise RequestError(f"{shown} cannot hold sound; use .mp4")
    if target.kind == "gif" and fps is not None and fps > _MAX_GIF_FPS:
        raise RequestError(f"a .gif shows at most {_MAX_GIF_FPS} frames per second, got {fps:g}; use .mp4")
    _check_encoder(target.kind)
    _check_folder(target.path.parent, shown)
    _check_existing(target, shown, num_frames)
    return target


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
    if kind == "png" and "%" in Path(name).name:
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


def _check_folder(folder: Path, shown: str) -> None:
    """The nearest folder that exists must take a new file; missing ones below it are created when writing."""
    while not os.path.lexists(folder):
        folder = folder.parent
    if not os.path.isdir(folder):
        raise MediaError(f"{plain_text(folder)} is no folder, so {shown} cannot lie in it; choose another place")
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
    except OSError as error:
        raise write_error(shown, error) from error


def _check_existing(target: OutputTarget, shown: str, num_frames: int | None) -> None:
    if target.kind == "frames":
        if num_frames is not None:
            _check_sequence(target, shown, num_frames)
        return
    if not os.path.lexists(target.path):
        return
    if not stat.S_ISREG(os.stat(target.path).st_mode):
        raise MediaError(f"output {shown} exists and is no regular file; choose another name")
    if not os.access(target.path, os.W_OK):
        raise MediaError(f"cannot write {shown}: it is write-protected; choose another name")


def _check_sequence(target: OutputTarget, shown: str, num_frames: int) -> None:
    match = _PATTERN.fullmatch(target.path.name)
    if match is None or not target.path.parent.is_dir():
        return
    numbered = re.compile(f"{re.escape(match[1])}([0-9]+){re.escape(match[3])}")
    for name in sorted(os.listdir(target.path.parent)):
        found = numbered.fullmatch(name)
        if found and int(found[1]) >= num_frames and target.frame_name(int(found[1])) == name:
            raise RequestError(
                f"{shown}: {plain_text(name)} of a longer clip lies there and would be mixed with the {num_frames} new "
                "frames; choose another folder or remove the old frames"
            )


class StagedOutput:
    """The temporary place of an output, in the folder where it will lie: renamed by :meth:`commit`, or gone.

    A context manager; leaving it without a commit, for whatever reason, removes everything that it created, missing
    parent folders included. ``path`` is a file name, or for ``frames`` an empty folder.
    """

    def __init__(self, target: OutputTarget) -> None:
        self.target = target
        self._created: list[Path] = []
        folder = target.path.parent
        if target.kind == "frames" and not folder.exists():
            folder = folder.parent  # the whole new folder appears at once
        self._folder = folder
        self.path = draft_of(folder / target.path.name.replace("%", "_"))

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as on_failure, self.errors():
            on_failure.callback(self.discard)
            self._make_folders(self._folder)
            if self.target.kind == "frames":
                os.mkdir(self.path)
            on_failure.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the system's errors into a ``MediaError`` that names the output and the remedy."""
        try:
            yield
        except OSError as error:
            raise write_error(self.target.path, error) from error

    def commit(self) -> None:
        """Give the finished output its name. Raises ``MediaError``."""
        with self.errors():
            if self.target.kind != "frames":
                _sync(self.path)
                os.replace(self.path, self.target.path)
            elif self._folder != self.target.path.parent and not self.target.path.parent.exists():
                os.rename(self.path, self.target.path.parent)
            else:
                for name in sorted(os.listdir(self.path)):
                    os.replace(self.path / name, self.target.path.parent / name)
        self._created.clear()

    def discard(self) -> None:
        """Remove what was created and not committed; harmless after a commit."""
        with contextlib.suppress(OSError):
            if self.path.is_dir():
                shutil.rmtree(self.path)
            else:
                self.path.unlink(missing_ok=True)
        while self._created:
            with contextlib.suppress(OSError):
                self._created.pop().rmdir()

    def _make_folders(self, folder: Path) -> None:
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            os.mkdir(new)
            self._created.append(new)


def _sync(path: Path) -> None:
    """Make the disk confirm the data, so that a full disk is noticed before the old file is replaced."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
