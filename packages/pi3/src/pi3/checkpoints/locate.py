"""Where weights are: a file, a folder, the hub, or inside this package."""

import os
import re
from importlib.resources import files
from pathlib import Path

from wan_core import CheckpointError
from wan_core.hub import cached_file, download_files, open_hub, plan_download

WEIGHTS_FILE = "model.safetensors"
HUB_IDS = {"pi3": "yyfz233/Pi3", "pi3x": "yyfz233/Pi3X"}
"""Short names of the published weights (CC BY-NC 4.0: not for commercial use)."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def bundled_weights() -> Path:
    """The tiny weights that come with this package.

    Raises CheckpointError when this installation has none.
    """
    path = Path(str(files("pi3") / "weights" / "tiny.safetensors"))
    if not path.is_file():
        raise CheckpointError(
            "no weights come with this installation; run `pi3 download pi3 --to DIR` and give --checkpoint DIR"
        )
    return path


def find_weights(source: str | os.PathLike[str] | None, *, revision: str | None = None) -> Path:
    """The weight file that ``source`` means.

    ``None`` is the bundled tiny model; a file is itself; a folder holds ``model.safetensors`` or exactly one
    ``.safetensors`` file; ``pi3``, ``pi3x`` or ``OWNER/NAME`` is downloaded from the hub, or found in its cache. Raises
    CheckpointError with what to do.
    """
    if source is None:
        return bundled_weights()
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        return _in_folder(path)
    name = os.fspath(source)
    if not is_repository(name):
        raise CheckpointError(f"checkpoint {name} is no file, folder or hub id (OWNER/NAME); try pi3 or pi3x")
    return download_weights(HUB_IDS.get(name.lower(), name), revision=revision)


def is_repository(name: str) -> bool:
    """Whether a name that is no file or folder may be one of the hub: ``OWNER/NAME``, ``pi3`` or ``pi3x``."""
    return not Path(name).suffix and _HUB_ID.fullmatch(HUB_IDS.get(name.lower(), name)) is not None


def _in_folder(folder: Path) -> Path:
    if (folder / WEIGHTS_FILE).is_file():
        return folder / WEIGHTS_FILE
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} .safetensors files" if found else "no .safetensors file"
    raise CheckpointError(f"folder {folder} has no {WEIGHTS_FILE} and {what}; name the file itself")


def download_weights(
    repository: str, *, folder: Path | None = None, revision: str | None = None, token: str | None = None
) -> Path:
    """Fetch ``model.safetensors`` of a hub repository into its cache, or into ``folder``; returns the file.

    Raises what `wan_core.hub.cached_file` and `wan_core.hub.plan_download` raise.
    """
    if folder is None:
        return cached_file(repository, WEIGHTS_FILE, revision=revision, token=token)
    hub = open_hub("huggingface", token)
    download_files(plan_download(hub, repository, folder, revision=revision, include=[WEIGHTS_FILE]))
    return folder / WEIGHTS_FILE
