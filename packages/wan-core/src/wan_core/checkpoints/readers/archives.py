"""The zip archives that ``torch.save`` writes: checked before torch opens them, and where their records lie."""

import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from wan_core.checkpoints.readers.file_source import file_size, unreadable
from wan_core.errors import CheckpointError
from wan_core.files import plain_text

_MAX_RECORDS = 50_000
# Pickled state dicts need some hundred bytes a tensor; the allowance is for what trainers put beside them.
_PICKLE_BASE, _PICKLE_PER_RECORD = 65_536, 2_048
_MAX_PICKLE_BYTES = 16_000_000
_TAIL = 70_000  # the end-of-archive record, its longest comment, and zip64's
_LOCAL_HEADER = struct.Struct("<4s22xHH")


@dataclass(frozen=True)
class Record:
    """Where the bytes of one archive member lie in the file."""

    start: int
    length: int


def storage_records(path: Path) -> list[Record]:
    """The tensor storages of a torch archive, in file order.

    Raises CheckpointError when it is no such archive, is compressed (a small file must not unpack to a large one), has
    a pickle out of proportion to its tensors, or stores numbers in the wrong byte order.
    """
    _check_count(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, members)
            order = next((m for m in members if m.filename.endswith("/byteorder")), None)
            if order is not None and order.file_size <= 16 and archive.read(order) != b"little":
                raise CheckpointError(f"{path} was saved on a big-endian machine; save it again as safetensors")
        with path.open("rb") as file:
            records = [_place(path, file.fileno(), m) for m in members if "/data/" in m.filename]
    except OSError as error:
        raise unreadable(path, error) from error
    except (zipfile.BadZipFile, struct.error, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is cut off or damaged ({str(error)[:80]}); fetch it again") from error
    return sorted(records, key=lambda record: record.start)


def _check_count(path: Path) -> None:
    """The number of members, before the directory of all of them is parsed."""
    size = file_size(path)
    try:
        with path.open("rb") as file:
            file.seek(max(0, size - _TAIL))
            tail = file.read()
    except OSError as error:
        raise unreadable(path, error) from error
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise CheckpointError(f"{path} is cut off: a torch file ends with a directory that is missing; fetch it again")
    count = int.from_bytes(tail[end + 10 : end + 12], "little")
    wide = tail.rfind(b"PK\6\6", 0, end)
    if wide >= 0:
        count = int.from_bytes(tail[wide + 32 : wide + 40], "little")
    if count > _MAX_RECORDS:
        raise CheckpointError(
            f"{path} holds {count} records, at most {_MAX_RECORDS} make sense; it is no file of weights"
        )


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise CheckpointError(f"{path} is no file of weights: its records are not unique")
    arrays = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
    if arrays:
        raise CheckpointError(
            f"{path} holds arrays of numpy ({plain_text(', '.join(arrays))[:60]}), no weights; 'wan show' says how it "
            "was made, if it tells"
        )
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
        raise CheckpointError(f"{path} is compressed or encrypted, which torch files never are; fetch it again")
    pickles = [member for member in members if member.filename.endswith("data.pkl")]
    if len(pickles) != 1 or "/" not in pickles[0].filename:
        raise CheckpointError(f"{path} is a zip archive but not one that torch saved; give a file of weights")
    allowed = min(_MAX_PICKLE_BYTES, _PICKLE_BASE + _PICKLE_PER_RECORD * len(members))
    if pickles[0].file_size > allowed:
        raise CheckpointError(
            f"{path} holds {pickles[0].file_size} bytes of pickled objects for {len(members)} records, at most "
            f"{allowed} make sense; it is no file of weights"
        )


def _place(path: Path, descriptor: int, member: zipfile.ZipInfo) -> Record:
    # The local header may be longer than the directory says: torch pads it to align the data.
    raw = os.pread(descriptor, 30, member.header_offset)
    magic, name_length, extra_length = _LOCAL_HEADER.unpack(raw)
    if magic != b"PK\3\4":
        raise CheckpointError(f"{path} is damaged: record {member.filename[:80]!r} is not where it should be")
    return Record(member.header_offset + 30 + name_length + extra_length, member.file_size)
