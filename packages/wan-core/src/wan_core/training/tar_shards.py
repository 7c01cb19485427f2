"""WebDataset shards as a source of examples: tar files in which members of one key belong together.

``000001.mp4`` and ``000001.txt`` (the caption) are one example; ``000001.json`` may give ``caption``, ``start`` and
``end`` instead, ``000001.png`` or ``.jpg`` its first image. An image without a video is an example itself. A key ends
at the first dot of a name, as in WebDataset; where that joins several media, at the last (``my.cat.mp4``). Members are
read in place, nothing is unpacked into the folder, and what a member may be is checked before it is read: a plain file,
a safe name, a known ending, a sane size.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO

from wan_core.errors import MediaError, RequestError, WanError
from wan_core.files import IMAGE_ENDINGS, decode_text, plain_name, read_error
from wan_core.media import plain_text
from wan_core.training.tables import json_of

TEXT_ENDINGS = (".txt", ".json")
_NOTES = re.compile(
    r"(read.?me|licen[cs]e)([ ._-].*)?|copying|notice|notes?|credits|authors|change.?log|todo|about|info", re.I
)
# What the library raises for headers that nobody writes, beside its own errors.
_DAMAGED = (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, RecursionError, LookupError)
_CHUNK = 1 << 20
_MOST_TEXT = 1 << 20
_MOST_MEDIA = 16 << 30
_MOST_MEMBERS = 1_000_000


@dataclass(frozen=True)
class Member:
    """A file inside an uncompressed tar file, by its place there: ``offset`` and ``size`` in bytes."""

    archive: Path
    name: str
    offset: int
    size: int

    @contextmanager
    def unpacked(self) -> Iterator[Path]:
        """A temporary file with the member's content. Raises MediaError when the shard is cut off or the disk full."""
        with tempfile.TemporaryDirectory(prefix="wan-") as folder:
            path = Path(folder) / PurePosixPath(self.name).name
            try:
                with self.archive.open("rb") as source, path.open("wb") as target:
                    source.seek(self.offset)
                    _copy(source, target, self.size)
            except OSError as error:
                raise MediaError(f"cannot unpack {self}: {error.strerror or error}") from error
            if path.stat().st_size != self.size:
                raise MediaError(f"{self.archive} is cut off inside {plain_text(self.name)}; download it again")
            yield path

    def text(self) -> str:
        """The member as `decode_text` reads it. Raises RequestError, MediaError."""
        try:
            with self.archive.open("rb") as source:
                source.seek(self.offset)
                return decode_text(source.read(self.size), self)
        except OSError as error:
            raise read_error(self.archive, "shard", error) from error

    def __str__(self) -> str:
        return f"{self.archive}:{plain_text(self.name)}"


def is_note(path: PurePath) -> bool:
    """Whether a text is by its name about the data, as README.txt is, and no caption."""
    return path.suffix.lower() in TEXT_ENDINGS and _NOTES.fullmatch(path.stem) is not None


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    """Copy ``size`` bytes, or as many as there are."""
    while size > 0 and (data := source.read(min(size, _CHUNK))):
        target.write(data)
        size -= len(data)


@dataclass(frozen=True)
class Group:
    """The members of one key: a video or an image, its caption and what else is said of it."""

    media: Member
    image: Member | None
    values: dict[str, Any]


def read_groups(archive: Path, video_endings: tuple[str, ...]) -> Iterator[tuple[Member, Group | WanError]]:
    """The examples of one shard, in its order, each after its first member; a key that is none comes as its error.

    Raises RequestError naming the first member that may not be there, MediaError for a file that is no tar file.
    """
    keys: dict[str, list[Member]] = {}
    for member in _members(archive, (*video_endings, *IMAGE_ENDINGS, *TEXT_ENDINGS)):
        path = PurePosixPath(plain_name(member.name))
        keys.setdefault(str(path.parent / path.name.partition(".")[0]), []).append(member)
    for key, members in keys.items():
        for inner, own in _divided(key, members).items():
            if all(is_note(PurePosixPath(member.name)) for member in own):
                continue
            try:
                yield own[0], _group(archive, inner, own, video_endings)
            except WanError as error:
                yield own[0], error


def _divided(key: str, members: list[Member]) -> dict[str, list[Member]]:
    """The members of a key together, or by their names up to the last dot where its media differ in that, or its texts
    are two of a kind."""
    stems = {_stem(each) for each in members if _ending(each) not in TEXT_ENDINGS}
    texts = [_ending(each) for each in members if _ending(each) in TEXT_ENDINGS]
    if len(stems) <= 1 and len(set(texts)) == len(texts):
        return {key: members}
    divided: dict[str, list[Member]] = {}
    for member in members:
        divided.setdefault(_stem(member), []).append(member)
    return divided


def _stem(member: Member) -> str:
    return str(PurePosixPath(plain_name(member.name)).with_suffix(""))


def _ending(member: Member) -> str:
    return PurePosixPath(member.name).suffix.lower()


def _group(archive: Path, key: str, own: list[Member], video_endings: tuple[str, ...]) -> Group:
    place = f"{archive}: {plain_text(key)}"
    members: dict[str, Member] = {}
    for member in own:
        first = members.setdefault(_ending(member), member)
        if first is not member:
            raise RequestError(f"{place} has {plain_text(first.name)} and {plain_text(member.name)}; keep one of them")
        most = _MOST_TEXT if _ending(member) in TEXT_ENDINGS else _MOST_MEDIA
        if not 0 < member.size <= most:
            raise RequestError(f"{member} has {member.size} bytes; 1 to {most} are possible")
    media, image = _media(place, members, video_endings)
    values: dict[str, Any] = {}
    if ".json" in members:
        values = json_of(members[".json"].text(), f"{place}.json")
        if not isinstance(values, dict):
            raise RequestError(f"{place}.json must be one JSON object")
    if ".txt" in members:
        values = {**values, "caption": members[".txt"].text()}
    names = ("caption", "start", "end") if values.get("caption") else ("text", "prompt", "start", "end")
    kept = {name: values[name] for name in names if name in values}
    return Group(media, image, kept)


def _media(place: str, members: dict[str, Member], video_endings: tuple[str, ...]) -> tuple[Member, Member | None]:
    """The video of a key and its first image, if there is one; or its image alone."""
    videos = [member for ending, member in members.items() if ending in video_endings]
    images = [member for ending, member in members.items() if ending in IMAGE_ENDINGS]
    if len(videos) > 1 or len(videos or images) != 1:
        raise RequestError(
            f"{place} has {len(videos)} videos and {len(images)} images; each key needs one video, among "
            f"{', '.join(video_endings)}, or one image"
        )
    return (videos or images)[0], images[0] if videos and images else None


def _members(archive: Path, endings: tuple[str, ...]) -> Iterator[Member]:
    try:
        with tarfile.open(archive, "r:") as file:
            for count, info in enumerate(file):
                if info.isdir() or _is_hidden(PurePosixPath(info.name)):
                    continue
                if count >= _MOST_MEMBERS:
                    raise RequestError(f"{archive} has more than {_MOST_MEMBERS} members; divide it")
                yield _checked(archive, info, endings)
    except _DAMAGED as error:
        raise MediaError(f"{archive} is no uncompressed tar file, or damaged: {error}") from error
    except OSError as error:
        raise MediaError(f"cannot read {archive}: {error.strerror or error}") from error


def _is_hidden(path: PurePosixPath) -> bool:
    """Whether its like in a folder is passed over: what begins with a dot, and folders with ``__``."""
    folders = (part.startswith("__") for part in path.parts[:-1])
    return not _is_unsafe(path) and (any(part.startswith(".") for part in path.parts) or any(folders))


def _is_unsafe(path: PurePosixPath) -> bool:
    return path.is_absolute() or ".." in path.parts or "\\" in str(path) or "\0" in str(path) or not path.name


def _checked(archive: Path, info: tarfile.TarInfo, endings: tuple[str, ...]) -> Member:
    name, place = info.name, f"{archive}: member {plain_text(info.name)[:80]!r}"
    path = PurePosixPath(name)
    if _is_unsafe(path):
        raise RequestError(f"{place} has an unsafe name; members have relative names inside the shard")
    if not info.isreg() or info.issparse():
        raise RequestError(f"{place} is no plain file (a link or a device); shards hold plain files")
    ending = path.suffix.lower()
    if ending not in endings:
        raise RequestError(f"{place} has an unknown ending {ending!r}; known are {', '.join(endings)}")
    return Member(archive, name, info.offset_data, info.size)
