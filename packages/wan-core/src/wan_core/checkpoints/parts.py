"""The parts of a model as data: what each is, where it lies, and its dims."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_core.checkpoints.families import Expert, Family


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a model.

    ``file`` is its official path inside the checkpoint folder (``""``: the folder itself), or a whole path. ``config``
    are the dims of the released part, for estimates and to tell models apart; the network is built from what a file
    says.
    ``expert`` tells two networks of one name apart. ``source`` is for a part that does not come with the checkpoint: a
    file, a folder or a repository, as the family's ``find`` takes it. An ``is_optional`` part may be absent: a task's
    ``check`` tells when a request needs it.
    """

    name: str
    family: Family
    file: str = ""
    config: Any = None
    expert: Expert | None = None
    source: str | None = None
    is_optional: bool = False

    @property
    def place(self) -> str:
        """Where it lies in a folder with a whole model: a part whose ``file`` is a whole path, by its name."""
        return Path(self.file).name if Path(self.file).is_absolute() else self.file
