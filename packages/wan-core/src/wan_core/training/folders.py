"""What there is to train on: folders of videos and images with captions, tables of them, WebDataset shards.

A folder has a table (``metadata.csv``, ``.jsonl`` or ``.json``) with the columns ``file`` and ``caption`` and, if
wanted, ``image``, ``start`` and ``end`` (seconds); or media beside text files of the same name, subfolders with the
same, and shards (`wan_core.training.tar_shards`). Where a task needs one more file of an example, such as its ``pose``,
that is a column, or ``CLIP.pose.npz`` beside ``CLIP.mp4``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from wan_core.errors import RequestError, WanError
from wan_core.files import (
    IMAGE_ENDINGS,
    VIDEO_ENDINGS,
    folder_files,
    natural_order,
    plain_name,
    plain_text,
    read_text,
    stays_inside,
)  # fmt: skip
from wan_core.training.clip_rules import ClipRule
from wan_core.training.data import Example
from wan_core.training.tables import TABLE_ENDINGS, normal_row, read_rows
from wan_core.training.tar_shards import is_note, read_groups

MEDIA_ENDINGS = (*VIDEO_ENDINGS, *IMAGE_ENDINGS)
CAPTION_ENDINGS = (".txt", ".caption")
_TABLES = tuple(f"metadata{ending}" for ending in TABLE_ENDINGS)
_WHICH_TABLES = f"a list in a folder is called {' or '.join(_TABLES)}, or is given itself to --data"
# Lists of examples under other names, or of other kinds, that are worth a word where nothing else is found.
_LISTS = (*TABLE_ENDINGS, ".tsv", ".ndjson", ".parquet", ".arrow", ".xlsx", ".xls", ".ods", ".yaml", ".yml", ".xml")
_LONGEST_SHOWN = 120
_MOST_SECONDS = 1e7
MOST_LISTED = 20
"""How many bad examples a message names."""


@dataclass(frozen=True, kw_only=True)
class DataFolder:
    """A folder, or a table, of examples; each is shown ``repeats`` times an epoch. ``clips`` None is the run's rule."""

    path: Path
    repeats: int = 1
    clips: ClipRule | None = None


@dataclass
class FoundExamples:
    """The ``examples`` that can be trained on, and why others (``bad``) cannot; ``lists`` are files that were passed
    over and look like lists of examples; ``files`` are those that each example needs, as `Task.example_files` has them.
    """

    examples: list[Example] = field(default_factory=list)
    bad: list[WanError] = field(default_factory=list)
    lists: list[Path] = field(default_factory=list)
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @contextmanager
    def judging(self, name: str) -> Iterator[None]:
        """Note an error of the block as the reason why the example called ``name`` is left out."""
        try:
            yield
        except WanError as error:
            text = str(error)
            self.bad.append(error if Path(name).name in text else type(error)(f"{name}: {text}"))

    def refuse(self, where: str, remedy: str = "mend them, or leave them out with --skip-bad") -> None:
        """Raise the error of all bad examples together, if there are any: one keeps its own sentence."""
        if len(self.bad) == 1:
            raise self.bad[0]
        if self.bad:
            total = len(self.bad) + len(self.examples)
            raise type(self.bad[0])(
                f"{len(self.bad)} of {total} examples in {where} cannot be trained on:\n{self.report()}\n{remedy}"
            )

    def report(self) -> str:
        """The reasons, one a line, at most twenty."""
        lines = [f"  {plain_text(error)}" for error in self.bad[:MOST_LISTED]]
        more = len(self.bad) - len(lines)
        return "\n".join([*lines, f"  and {more} more"] if more else lines)


def reading_notes(examples: Iterable[Example]) -> list[str]:
    """Sentences on how the videos of examples are read, for their user: each once, at most twenty."""
    return shortened(list(dict.fromkeys(note for each in examples for note in each.notes)), "more such notes")


def shortened(sentences: Sequence[str], what: str) -> list[str]:
    """At most twenty of the sentences, and one on how many more there are of ``what``."""
    more = len(sentences) - MOST_LISTED
    return [*sentences[:MOST_LISTED], *([f"and {more} {what}"] if more > 0 else [])]


def find_examples(folder: str | Path) -> list[Example]:
    """The examples of a folder or a table, in a fixed order; every named file exists, no video or image is opened.

    Raises RequestError naming what is wrong: no folder, no examples, unknown columns, a line without file or caption,
    a missing file, a caption without video or image, one without caption, an empty part.
    """
    found = look_into([DataFolder(path=Path(folder))])
    found.refuse(str(folder))
    return found.examples


def look_into(
    folders: Sequence[DataFolder], clips: ClipRule | None = None, files: Mapping[str, Sequence[str]] | None = None
) -> FoundExamples:
    """The examples of all folders; ``clips`` is the rule of those without one, ``files`` `Task.example_files`.

    Raises RequestError as `find_examples` does for a folder that cannot be looked into, or has nothing, or nothing but
    what is in a list that is not read."""
    found = FoundExamples()
    for folder in folders:
        here = FoundExamples(files=files or {})
        if folder.path.is_file() and folder.path.suffix.lower() in TABLE_ENDINGS:
            _from_table(folder.path, here)
        elif folder.path.is_dir():
            _from_folder(folder.path, here, set())
        elif folder.path.is_file():
            raise RequestError(
                f"{folder.path} is no folder and no list that is read; a list is {', '.join(TABLE_ENDINGS)} (.csv with "
                "commas, semicolons or tabs), or .toml with [[datasets]]"
            )
        else:
            raise RequestError(f"there is no folder {folder.path}; give the folder with the videos and their captions")
        if not here.examples and here.lists:
            more = f" (and {len(here.lists) - 1} more)" if here.lists[1:] else ""
            here.bad.insert(0, RequestError(f"{here.lists[0]}{more} is not read: {_WHICH_TABLES}"))
        if not here.examples and not here.bad:
            raise RequestError(
                f"{folder.path} has no examples; it needs {' or '.join(_TABLES)}, or videos or images with .txt files, "
                "or .tar shards"
            )
        rule = folder.clips or clips or ClipRule()
        found.examples += [replace(each, clips=rule, repeats=folder.repeats) for each in here.examples]
        found.bad += here.bad
    return found


def _from_folder(folder: Path, found: FoundExamples, seen: set[Path]) -> None:
    if folder.resolve() in seen:  # a link to a folder above
        return
    seen.add(folder.resolve())
    tables = [path for path in folder_files(folder, TABLE_ENDINGS) if path.name.lower() in _TABLES]
    if len(tables) > 1:
        raise RequestError(f"{folder} has both {tables[0].name} and {tables[1].name}; keep one")
    if tables:
        _from_table(tables[0], found)
        return
    found.lists += [path for path in folder_files(folder, _LISTS) if not is_note(path)]
    _from_pairs(folder, found)
    for shard in folder_files(folder, {".tar"}):
        _from_shard(shard, found)
    inner = [each for each in folder.iterdir() if each.is_dir() and not each.name.startswith((".", "__"))]
    inner = [each for each in inner if not _belongs(each, found)]
    for each in sorted(inner, key=natural_order):
        _from_folder(each, found, seen)


def _from_pairs(folder: Path, found: FoundExamples) -> None:
    media, texts = _by_name(folder, MEDIA_ENDINGS, found), _by_name(folder, CAPTION_ENDINGS, found)
    note = _sharing_note(
        [each for name, each in media.items() if name in texts and len(_kinds(each)) == len(each) == 2]
    )
    for name in sorted(set(media) | set(texts)):
        shown = (media.get(name) or texts[name])[0]
        if name not in media and is_note(shown):
            continue
        with found.judging(str(shown)):
            files, text = _pair(folder, name, media.get(name, []), texts.get(name, []))
            caption = read_text(text).strip()
            if not caption:
                raise RequestError(f"{text} is empty; it must hold the caption")
            notes = (note,) if len(files) > 1 else ()
            beside = {each: _beside(files[0], each, endings) for each, endings in found.files.items()}
            found.examples += [Example(file=file, caption=caption, notes=notes, files=beside) for file in files]


def _beside(media: Path, name: str, endings: Sequence[str]) -> Path:
    """The file called ``name`` of the example of a video or image."""
    wanted = [media.with_name(f"{media.stem}.{name}{ending}") for ending in endings]
    there = [each for each in wanted if each.exists()]
    if not there:
        raise RequestError(f"{media} has no {name}, such as {wanted[0].name}")
    if there[1:]:
        raise RequestError(f"{there[0]} and {there[1].name} are two of one name; keep one")
    return there[0]


def _belongs(path: Path, found: FoundExamples) -> bool:
    """Whether a file or folder is one more file of an example, by its name."""
    return any(f"{path.name}.".rpartition(f".{name}.")[1] for name in found.files)


def _sharing_note(shared: Sequence[Sequence[Path]]) -> str:
    """What to tell of images and videos of one name and caption, as phones make of a moment (Live Photos)."""
    if not shared:
        return ""
    first, second = shared[0][:2]
    more = f" (and {len(shared) - 1} more such pairs)" if shared[1:] else ""
    return (
        f"{first} and {second.name}{more} share a caption: both are trained on, the image as a clip of one frame; what "
        "is moved out of the folder is left out"
    )


def _by_name(folder: Path, endings: Sequence[str], found: FoundExamples) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in (each for each in folder_files(folder, endings) if not _belongs(each, found)):
        files.setdefault(plain_name(path.stem), []).append(path)
    return files


def _pair(folder: Path, name: str, media: Sequence[Path], texts: Sequence[Path]) -> tuple[Sequence[Path], Path]:
    """What has a caption, and the caption: one image or video, or one of each, as phones make of a moment."""
    if not media:
        others = [each.name for each in sorted(folder.glob("*")) if plain_name(each.stem) == name and each not in texts]
        broken = [name for name in others if not (folder / name).exists()]
        if broken:
            raise RequestError(f"{texts[0]} has no video or image; {_broken_link(folder / broken[0])}")
        kinds = f"{others[0]} is none of {', '.join(MEDIA_ENDINGS)}" if others else "remove it, or name it README.txt"
        raise RequestError(f"{texts[0]} has no video or image; {kinds}")
    if not texts:
        text = folder / f"{name}.txt"
        raise RequestError(f"{media[0]} has no caption {_broken_link(text) if text.is_symlink() else text.name}")
    for what, several in {**_kinds(media), "captions": texts}.items():
        if len(several) > 1:
            raise RequestError(
                f"{several[0]} and {several[1].name} are two {what} of one name; move one out of the folder"
                + ("" if several is texts else ", or give it another name and a caption of that name")
            )
    return media, texts[0]


def _kinds(media: Sequence[Path]) -> dict[str, list[Path]]:
    """Files as ``images`` and ``videos``, those of them that there are."""
    kinds: dict[str, list[Path]] = {}
    for path in media:
        kinds.setdefault("images" if path.suffix.lower() in IMAGE_ENDINGS else "videos", []).append(path)
    return kinds


def _from_shard(archive: Path, found: FoundExamples) -> None:
    for first, group in read_groups(archive, VIDEO_ENDINGS):
        with found.judging(str(first)):
            if isinstance(group, WanError):
                raise group
            place = str(group.media)
            row = normal_row(group.values, place)
            if "caption" not in row:
                raise RequestError(f"{place} has no caption; it needs a .txt, or a .json with one")
            if found.files:
                raise RequestError(f"{place} has no {next(iter(found.files))}, which shards cannot hold; unpack them")
            start, end = _part(row, place)
            example = Example(
                file=Path(group.media.name), caption=row["caption"], start=start, end=end, packed=group.media,
                image=None if group.image is None else Path(group.image.name), packed_image=group.image,
            )  # fmt: skip
            found.examples.append(example)


def _from_table(table: Path, found: FoundExamples) -> None:
    for number, values in read_rows(table):
        place = f"{table.name}, line {number}"
        with found.judging(place):
            if isinstance(values, RequestError):
                raise values
            row = normal_row(values, place, found.files)
            for name in ("file", "caption"):
                if name not in row:
                    raise RequestError(f"{place}: {name} is missing")
            start, end = _part(row, place)
            image = existing_in(table.parent, row["image"], place) if "image" in row else None
            file = existing_in(table.parent, row["file"], place)
            if file.suffix.lower() not in MEDIA_ENDINGS:
                raise RequestError(f"{place}: {file.name} is none of {', '.join(MEDIA_ENDINGS)}")
            beside = {
                each: existing_in(table.parent, row[each], place, Path.exists)
                if each in row
                else _beside(file, each, endings)
                for each, endings in found.files.items()
            }
            found.examples.append(
                Example(file=file, caption=row["caption"], image=image, start=start, end=end, files=beside)
            )


def _part(row: Mapping[str, Any], place: str) -> tuple[float, float | None]:
    start, end = _seconds(row, "start", place) or 0.0, _seconds(row, "end", place)
    if start < 0 or (end is not None and end <= start):
        raise RequestError(f"{place}: start must be at least 0 and below end, got {start} and {end}")
    return start, end


def _seconds(row: Mapping[str, Any], name: str, place: str) -> float | None:
    if name not in row:
        return None
    try:
        seconds = float(row[name])
    except ValueError:
        seconds = math.nan
    if not abs(seconds) < _MOST_SECONDS:  # nor nan
        raise RequestError(f"{place}: {name} must be seconds, got {row[name]!r:.60}")
    return seconds


def existing_in(folder: Path, name: str, place: str, is_there: Callable[[Path], bool] = Path.is_file) -> Path:
    """The file that a table in ``folder`` names, from there and in it: as written, with the separators of Windows, or
    in another case or spelling of the same letters where just one file has it. ``is_there`` tells what counts as one.

    Raises RequestError naming ``place`` for none, and for a name or a link that leads out of the folder."""
    shown = plain_text(name)[:_LONGEST_SHOWN]
    inside = _from_folder_on(folder, name)
    if inside is None:
        raise RequestError(
            f"{place}: {shown} is no place in the folder of the table; write names from there, or give the folder of "
            "the videos itself to --data"
        )
    candidates = [folder / inside]
    if not _is_possible(candidates[0], is_there):
        candidates = [folder]
        for part in PureWindowsPath(inside).parts:
            candidates = [found for parent in candidates for found in _like(parent, part)]
    files = [each for each in candidates if is_there(each)]
    if len(files) != 1:
        among = f" ({files[0]} and {files[1]} are alike)" if files else ""
        links = [each for each in candidates if each.is_symlink()]
        if links and not files:
            raise RequestError(f"{place}: {_broken_link(links[0])}")
        raise RequestError(f"{place}: there is no file {folder / shown}{among}")
    if not stays_inside(folder, files[0]):
        raise RequestError(f"{place}: {shown} is a link out of its folder, to {plain_text(files[0].resolve())}")
    return files[0]


def _from_folder_on(folder: Path, name: str) -> str | None:
    """A name from ``folder`` on, or None for one that leads out of it."""
    if name.startswith("/") and Path(name).is_relative_to(folder.absolute()):
        name = str(Path(name).relative_to(folder.absolute()))
    windows = PureWindowsPath(name)
    return None if windows.root or windows.drive or ".." in windows.parts else name


def _broken_link(path: Path) -> str:
    return f"{path.name} is a link to {plain_text(path.readlink())}, which is not there"


def _is_possible(path: Path, is_there: Callable[[Path], bool]) -> bool:
    try:
        return is_there(path)
    except (OSError, ValueError):  # a name that no disk takes
        return False


def _like(folder: Path, name: str) -> list[Path]:
    try:
        inside = list(folder.iterdir())
    except OSError:
        return []
    wanted = plain_name(name)
    same = [each for each in inside if plain_name(each.name) == wanted]
    return same or [each for each in inside if plain_name(each.name).casefold() == wanted.casefold()]
