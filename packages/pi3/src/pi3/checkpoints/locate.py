"""Where weights are: a file, a folder, the hub, or inside this package."""

import os
import re
from importlib.resources import files
from pathlib import Path

from wan_core.errors import CheckpointError

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
    repository = HUB_IDS.get(name.lower(), name)
    if path.suffix or not _HUB_ID.fullmatch(repository):
        raise CheckpointError(f"checkpoint {name} is no file, folder or hub id (OWNER/NAME); try pi3 or pi3x")
    return download_weights(repository, revision=revision)


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

    Raises CheckpointError when the repository, the file or the network is not there.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(repository, WEIGHTS_FILE, revision=revision, token=token, local_dir=folder))
    except GatedRepoError as error:
        raise CheckpointError(f"{repository} needs an accepted licence and a token; set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"the hub has no repository {repository}; published are {_published()}") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repository} has no revision {revision}; leave it out for the newest") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repository} is not in the local cache and the hub cannot be reached; check the network, or give a file"
        ) from error
    except (EntryNotFoundError, HFValidationError) as error:
        raise CheckpointError(f"{repository} has no {WEIGHTS_FILE}; published are {_published()}") from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{repository} could not be downloaded: {str(error).splitlines()[0][:160]}") from error


def _published() -> str:
    return " and ".join(HUB_IDS.values())
