"""What became of each sample, a small file each, so that processes share the work and a stopped one goes on."""

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindweave.samples import Sample, write_samples
from wan_core import MediaError
from wan_core.drafts import alone_in, write_text


@dataclass(frozen=True)
class Share:
    """One of ``count`` processes: sample ``index``, ``index + count``, ... in sorted order are its own."""

    index: int = 0
    count: int = 1

    def of(self, names: Sequence[str]) -> list[str]:
        """The own ones of sorted names."""
        return list(names[self.index :: self.count])


class Ledger:
    """Notes on samples beside ``output``: for each, what changes in it or why it failed, and what it was made of.

    ``digests`` name what each sample is made of; a note with another digest does not count.
    """

    def __init__(self, output: Path, digests: Mapping[str, str]) -> None:
        self.output = output
        self._digests = dict(digests)
        self._folder = output.with_name(f".{output.name}.samples")

    def note(self, name: str, changes: Mapping[str, Any], *, error: str = "") -> None:
        """What becomes of a sample. Raises MediaError when the disk refuses."""
        content = {"of": self._digests[name], "changes": dict(changes), "error": error}
        write_text(self._folder / f"{name}.json", json.dumps(content))

    def changes(self, name: str) -> dict[str, Any] | None:
        """What was noted of a sample that is done; None for others."""
        noted = self._read(name)
        return None if noted is None or noted["error"] else noted["changes"]

    def close(self, samples: Mapping[str, Sample], *, keep_failed: bool = True) -> tuple[bool, dict[str, str]]:
        """Write the output once all samples have a note: whether it was, and the failures, by sample.

        The process that is last does it; those that failed stay in it as they were, or are left out (one without
        samples is not written). Raises MediaError.
        """
        busy = MediaError(f"another process is writing {self.output}; try again")
        with alone_in(self.output.parent, busy, name=f".{self.output.name}.lock", wait=60):
            noted = {name: self._read(name) for name in samples}
            found = {name: note for name, note in noted.items() if note is not None}
            errors = {name: note["error"] for name, note in found.items() if note["error"]}
            if len(found) < len(samples):
                return False, errors
            kept = [name for name in sorted(samples) if keep_failed or name not in errors]
            if kept:
                write_samples(self.output, {name: {**samples[name].values, **found[name]["changes"]} for name in kept})
            if not errors:
                self.clear()
        with contextlib.suppress(OSError):
            (self.output.parent / f".{self.output.name}.lock").unlink(missing_ok=True)
        return True, errors

    def clear(self) -> None:
        """Throw the notes away: the output holds what they say."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            noted = json.loads((self._folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        is_ours = isinstance(noted, dict) and noted.get("of") == self._digests[name]
        return noted if is_ours and {type(noted.get(key)) for key in ("changes", "error")} == {dict, str} else None
