"""Model hubs through their own clients: what a repository holds, one file of it, and refusals in one sentence."""

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from tqdm import tqdm

from wan_core.errors import BackendError, CheckpointError, RequestError
from wan_core.files import hash_file, plain_text, write_error
from wan_core.hub.manifest import MANIFEST_NAME, is_inside

HubName = Literal["huggingface", "modelscope"]
Advance = Callable[[int], object]

_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_XET_DISK = re.compile(r"IO Error: .*\(os error (\d+)\)")
_REPOSITORY_NOTES = (".gitattributes", ".gitignore")  # of git itself, in every repository; never fetched
_MAX_FILE_BYTES = 1 << 44
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class PassingTroubleError(Exception):
    """The connection or the server failed in a way that may pass."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. ``digest`` is its SHA-256 or git's SHA-1 of it in lower-case hex, "" when not listed."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """A repository at one revision; ``licence`` is that of the weights, "" when the hub does not say."""

    repository: str
    revision: str
    licence: str
    files: tuple[RemoteFile, ...]


class HuggingFace:
    """Hugging Face, or a mirror of it, with the settings of its client; ``host`` names it in messages."""

    name: HubName = "huggingface"
    token_variable = "HF_TOKEN"

    def __init__(self, token: str | None) -> None:
        from huggingface_hub import constants, get_token
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

        self.token, self.host = token, _host(constants.ENDPOINT)
        self.has_token = _is_token(get_token() if token is None else token)
        self.errors = (HTTPError, OSError, RuntimeError)  # the last of hf-xet

    def list_files(self, repository: str, revision: str | None) -> Listing:
        """The files of a repository. Raises CheckpointError for a refusal, PassingTroubleError."""
        from huggingface_hub import HfApi

        with refusals(self, repository, revision):
            info = HfApi(token=self.token).model_info(repository, revision=revision, files_metadata=True, timeout=30)
            files = [
                (item.rfilename, *((item.lfs.size, item.lfs.sha256) if item.lfs else (item.size, item.blob_id)))
                for item in info.siblings or ()
            ]
            card: Any = info.card_data or {}
            licence = [card.get("license_name") or card.get("license"), card.get("license_link")]
        return _listing(self, repository, info.sha or revision or "main", licence, files)

    def fetch(self, listing: Listing, file: RemoteFile, folder: Path, advance: Advance) -> None:
        """Put a file into ``folder``, unchecked. Raises as `list_files`, OSError of the disk."""
        from huggingface_hub import hf_hub_download

        for left in folder.rglob("*.incomplete"):  # of a killed process; the client does not go on with them
            left.unlink(missing_ok=True)
        with refusals(self, listing.repository, listing.revision, file.name):
            hf_hub_download(
                listing.repository, file.name, revision=listing.revision, token=self.token, local_dir=folder,
                cache_dir=folder / ".none", tqdm_class=_listener(advance),
            )  # fmt: skip

    def cached(self, repository: str, file: RemoteFile) -> Path | None:
        """The same file in the client's cache on this machine, by its hash; unchecked."""
        from huggingface_hub import constants

        blobs = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"
        return blobs / file.digest if file.digest and (blobs / file.digest).is_file() else None


class ModelScope:
    """ModelScope through the client of the extra; the methods as of `HuggingFace`."""

    name: HubName = "modelscope"
    token_variable = "MODELSCOPE_API_TOKEN"

    def __init__(self, token: str | None) -> None:
        try:
            from modelscope_hub import HubApi, HubConfig
            from modelscope_hub.errors import HubError
        except ImportError as error:
            raise BackendError(
                "ModelScope needs its client: install wan-core[modelscope], or fetch from Hugging Face"
            ) from error
        config = HubConfig(token=token)
        self.host = _host(os.environ.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn")
        self.has_token = _is_token(config.token)
        self.errors = (HubError, OSError)
        self._api = HubApi(config)

    def list_files(self, repository: str, revision: str | None) -> Listing:
        with refusals(self, repository, None):
            licence = self._api.get_repo(repository, "model").license
        with refusals(self, repository, revision):
            found = self._api.list_repo_files(repository, "model", revision=revision)
            files = [(item.path, item.size, item.sha256) for item in found if not item.is_dir]
        return _listing(self, repository, revision or "master", [licence], files)

    def fetch(self, listing: Listing, file: RemoteFile, folder: Path, advance: Advance) -> None:
        with (
            refusals(self, listing.repository, listing.revision, file.name),
            redirect_stderr(io.StringIO()),  # the client draws a bar of its own
        ):
            self._api.downloader.download_file(
                listing.repository, "model", file.name, revision=listing.revision, local_dir=folder,
                expected_sha256=file.digest or None, file_size=file.size, progress_callbacks=[_listener(advance)],
            )  # fmt: skip

    def cached(self, repository: str, file: RemoteFile) -> Path | None:
        return None


Hub = HuggingFace | ModelScope


def open_hub(name: HubName, token: str | None = None) -> Hub:
    """The hub called ``name`` with the settings of its client's environment; ``token`` overrides that of there.

    Raises RequestError for an impossible token or address, BackendError when the client is not installed.
    """
    return HuggingFace(token) if name == "huggingface" else ModelScope(token)


def cached_file(repository: str, name: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """A file of a Hugging Face repository in the hub's cache on this machine; checked when it was fetched just now.

    Raises CheckpointError when it is neither there nor to be had, RequestError for a malformed repository name,
    MediaError when the disk refuses.
    """
    from huggingface_hub import constants, hf_hub_download

    hub, received = HuggingFace(token), list[int]()
    listener = _listener(received.append)
    try:
        with refusals(hub, check_repository(repository), revision, name):
            path = Path(hf_hub_download(repository, name, revision=revision, token=token, tqdm_class=listener))
    except PassingTroubleError as trouble:
        raise CheckpointError(
            f"{repository} is not in the cache of this machine and cannot be fetched ({trouble}); check the network"
        ) from None
    except OSError as error:
        raise write_error(constants.HF_HUB_CACHE, error) from error
    blob = path.resolve()
    if received and len(blob.name) == 64 and hash_file(blob) != blob.name:
        blob.unlink(missing_ok=True)
        raise wrong_hash(hub, name)
    return path


def check_repository(repository: str) -> str:
    """``repository`` when it has the form OWNER/NAME. Raises RequestError."""
    if not _REPOSITORY.fullmatch(repository):
        raise RequestError(f"a repository has the form OWNER/NAME, got {plain_text(repository)[:120]!r}")
    return repository


def wrong_hash(hub: Hub, name: str) -> CheckpointError:
    """The error of a file that is not what the hub lists."""
    return CheckpointError(
        f"{name} from {hub.host} does not have the hash that is listed for it; it was deleted: run the command again, "
        "and if it fails again the copy there or the network is damaged"
    )


@contextmanager
def refusals(hub: Hub, repository: str, revision: str | None, file: str = "") -> Iterator[None]:
    """Turn the errors of a client into PassingTroubleError and CheckpointError; those of the disk stay."""
    try:
        yield
    except hub.errors as error:
        raise _disk_error(error) or _server_error(hub, error, repository, revision, file) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # of answers that the client does not expect
        raise CheckpointError(f"{hub.host} does not answer like {hub.name}; check its address") from error


def _disk_error(error: Exception) -> OSError | None:
    """The system's error that a client reports, if it is one of the disk."""
    written = _XET_DISK.search(str(error))
    for found in (error, error.__cause__, OSError(int(written[1]), "") if written else None):
        if isinstance(found, OSError) and found.errno and not isinstance(found, ConnectionError):
            return found
    return None


def _server_error(hub: Hub, error: Exception, repository: str, revision: str | None, file: str) -> Exception:
    names = {type(error).__name__, type(error.__cause__).__name__}  # of clients that need not be installed
    if names & {"FileIntegrityError", "FileSizeMismatchError"}:
        return wrong_hash(hub, file)
    if "OfflineModeIsEnabled" in names:
        return CheckpointError(
            "HF_HUB_OFFLINE is set, so nothing can be fetched: unset it, or copy the model's folder from another "
            "machine and check it with 'wan verify'"
        )
    response = getattr(error, "response", None)  # one with a refusal is false
    response = getattr(error.__cause__, "response", None) if response is None else response
    status = getattr(error, "status_code", None) if response is None else response.status_code
    if status is None or status in _PASSING:
        reason = f"the server answers with status {status}" if status else error.__cause__ or error
        return PassingTroubleError(plain_text(reason)[:120])
    is_gated = response is not None and response.headers.get("X-Error-Code") == "GatedRepo"
    return CheckpointError(_refusal(hub, repository, revision, file, status, is_gated))


def _refusal(hub: Hub, repository: str, revision: str | None, file: str, status: int, is_gated: bool) -> str:
    if status in {401, 403}:
        name = f"{repository} is gated on {hub.host}" if is_gated else f"{hub.host} does not show {repository}"
        remedy = "accept its terms on its page there" if is_gated else "check the name, and its page for access"
        given = f"the token is not let in: check --token, {hub.token_variable} and the stored login"
        return f"{name}: {remedy}; {given if hub.has_token else f'give a token (--token or {hub.token_variable})'}"
    if status == 404:
        what = f" with a file {file}" if file else f" with a revision {revision!r}" if revision else ""
        return plain_text(f"{hub.host} has no model {repository}{what}; check the names")[:300]
    return f"{hub.host} refuses to give {repository} (status {status})"


def _listing(
    hub: Hub, repository: str, revision: str, licence: Iterable[object], files: Iterable[tuple[str, object, object]]
) -> Listing:
    """A list from a server, which is not trusted. Raises CheckpointError."""
    found = {}
    for name, size, digest in files:
        if name in _REPOSITORY_NOTES:
            continue
        if (
            not isinstance(name, str)
            or any(part.startswith(".") for part in name.split("/"))
            or not is_inside(name)
            or type(size) is not int
            or not 0 <= size <= _MAX_FILE_BYTES
        ):
            raise CheckpointError(
                f"{hub.host} lists a file called {plain_text(name)[:120]!r} of {plain_text(size)[:20]} bytes: a hidden "
                "name, one that could leave the folder, or no possible size; such a repository is refused"
            )
        if name.rpartition("/")[2] != MANIFEST_NAME:
            known = digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else ""
            found[name] = RemoteFile(name, size, known)
    named = plain_text(" ".join(str(name) for name in licence if name))[:200]
    return Listing(repository, revision, named, tuple(found[name] for name in sorted(found)))


def _host(endpoint: str) -> str:
    """The server of an http address, without what else an address may hold. Raises RequestError."""
    with suppress(ValueError):
        parts = urlsplit(endpoint)
        if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0:
            return parts.hostname
    raise RequestError("the address of the hub must begin with https:// and name a server; check its variable")


def _is_token(token: str | None) -> bool:
    """Whether there is one. Raises RequestError for one that the clients could only print in an error."""
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token and token):
        raise RequestError("the token is empty or holds spaces, line breaks or other odd characters; paste it again")
    return token is not None


def _listener(advance: Advance) -> type:
    """A class as both clients want it for their bars: it draws none and tells ``advance`` the bytes."""

    class Listener(tqdm):  # type: ignore[type-arg]
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(disable=True)

        def update(self, n: float | None = 1) -> None:
            advance(int(n or 0))

        def ignore(self, *arguments: object) -> None: ...

        end = update_transfer = ignore  # the second counts bytes as they are on the way, perhaps compressed

        def set_transfer_postfix_str(self, text: str, refresh: bool = True) -> None: ...

    return Listener
