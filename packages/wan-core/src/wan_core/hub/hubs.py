"""Model hubs through their own clients: what a repository holds, one file of it, and refusals in one sentence."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from wan_core.errors import BackendError, CheckpointError, RequestError
from wan_core.files import plain_text
from wan_core.hub.manifest import MANIFEST_NAME, hash_file, is_inside

HubName = Literal["huggingface", "modelscope"]

_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MAX_FILE_BYTES = 1 << 44
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_STRANGE = (AttributeError, KeyError, TypeError, ValueError)
"""What the clients raise when the answer of a server is not what they expect."""


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


class Hub(Protocol):
    """A place that publishes models. ``host`` is shown in messages: an address may hold a password."""

    name: HubName
    host: str

    def list_files(self, repository: str, revision: str | None) -> Listing:
        """The files of a repository. Raises CheckpointError for a refusal, PassingTroubleError."""

    def fetch(self, listing: Listing, file: RemoteFile, folder: Path, advance: Callable[[int], object]) -> None:
        """Put a file into ``folder``, unchecked; ``advance`` is told the bytes. Raises as above, OSError of the disk."""

    def cached(self, repository: str, file: RemoteFile) -> Path | None:
        """The same file in a cache on this machine, by its hash."""


def open_hub(name: HubName, token: str | None = None) -> Hub:
    """The hub called ``name`` with the settings of its client's environment; ``token`` overrides that of there.

    Raises RequestError for an impossible token or address, BackendError when the client is not installed.
    """
    return _HuggingFace(token) if name == "huggingface" else _ModelScope(token)


def cached_file(repository: str, name: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """A file of a Hugging Face repository in the hub's cache on this machine; checked when it was fetched just now.

    Raises CheckpointError when it is neither there nor to be had, RequestError for a malformed repository name.
    """
    from huggingface_hub import hf_hub_download

    hub, received = _HuggingFace(token), list[int]()
    arguments: dict[str, Any] = {"token": token, "revision": revision, "tqdm_class": _listener(received.append)}
    try:
        with hub.refusals(check_repository(repository), revision, name):
            blob = Path(path := hf_hub_download(repository, name, **arguments)).resolve()
    except PassingTroubleError as trouble:
        raise CheckpointError(
            f"{repository} is not in the cache of this machine and cannot be fetched ({trouble}); check the network"
        ) from None
    if received and len(blob.name) == 64 and hash_file(blob) != blob.name:
        blob.unlink(missing_ok=True)
        raise wrong_hash(hub, name)
    return Path(path)


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


class _HuggingFace:
    name: HubName = "huggingface"

    def __init__(self, token: str | None) -> None:
        from huggingface_hub import constants, get_token

        self.token, self.host = token, _host(constants.ENDPOINT)
        self._has_token = _check_token(token if token is not None else get_token())

    def list_files(self, repository: str, revision: str | None) -> Listing:
        from huggingface_hub import HfApi

        with self.refusals(repository, revision), _answers_of(self):
            found = HfApi(token=self.token).model_info(
                repository, revision=revision, files_metadata=True, timeout=30
            )
            files = [
                (item.rfilename, item.lfs.size, item.lfs.sha256) if item.lfs else (item.rfilename, item.size, item.blob_id)
                for item in found.siblings or ()
            ]
            card = found.card_data or {}
            licence = [card.get("license_name") or card.get("license"), card.get("license_link")]
        named = plain_text(" ".join(str(name) for name in licence if name))[:200]
        return Listing(repository, found.sha or revision or "main", named, _checked(self.host, files))

    def fetch(self, listing: Listing, file: RemoteFile, folder: Path, advance: Callable[[int], object]) -> None:
        from huggingface_hub import hf_hub_download

        for left in folder.rglob("*.incomplete"):  # of a killed process; the client does not go on with them
            left.unlink(missing_ok=True)
        with self.refusals(listing.repository, listing.revision, file.name):
            hf_hub_download(
                listing.repository, file.name, revision=listing.revision, token=self.token, local_dir=folder, cache_dir=folder / ".none", tqdm_class=_listener(advance),
            )  # fmt: skip

    def cached(self, repository: str, file: RemoteFile) -> Path | None:
        from huggingface_hub import constants

        name = f"models--{repository.replace('/', '--')}"
        path = Path(constants.HF_HUB_CACHE) / name / "blobs" / (file.digest or "-")
        return path if path.is_file() else None

    @contextmanager
    def refusals(self, repository: str, revision: str | None, file: str = "") -> Iterator[None]:
        """Turn the errors of the client into ours; those of the disk stay."""
        from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

        try:
            yield
        except (HTTPError, OSError, RuntimeError) as error:  # the last of hf-xet
            if isinstance(error.__cause__ or error, OfflineModeIsEnabled):
                raise CheckpointError(
                    "HF_HUB_OFFLINE is set, so nothing can be fetched: unset it, or copy the model's folder from "
                    "another machine and check it with 'wan verify'"
                ) from None
            raise _translated(self, error, repository, revision, file, self._has_token, "HF_TOKEN") from None


class _ModelScope:
    name: HubName = "modelscope"

    def __init__(self, token: str | None) -> None:
        try:
            from modelscope_hub import HubApi, HubConfig
        except ImportError as error:
            raise BackendError(
                "ModelScope's client is not installed; install the extra wan-core[modelscope], or leave out --from"
            ) from error
        self.host = _host(os.environ.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn")
        config = HubConfig(token=token)
        self._has_token = _check_token(config.token)
        self._api = HubApi(config)

    def list_files(self, repository: str, revision: str | None) -> Listing:
        with self._refusals(repository, None), _answers_of(self):
            licence = self._api.get_repo(repository, "model").license
        with self._refusals(repository, revision), _answers_of(self):
            found = self._api.list_repo_files(repository, "model", revision=revision)
            files = [(item.path, item.size, item.sha256) for item in found if not item.is_dir]
        return Listing(repository, revision or "master", plain_text(licence or "")[:80], _checked(self.host, files))

    def fetch(self, listing: Listing, file: RemoteFile, folder: Path, advance: Callable[[int], object]) -> None:
        from modelscope_hub.errors import FileIntegrityError

        with self._refusals(listing.repository, listing.revision, file.name):
            try:
                self._api.downloader.download_file(
                    listing.repository, "model", file.name, revision=listing.revision, local_dir=folder,
                    expected_sha256=file.digest or None, file_size=file.size, progress_callbacks=[_listener(advance)],
                )  # fmt: skip
            except FileIntegrityError:
                raise wrong_hash(self, file.name) from None

    def cached(self, repository: str, file: RemoteFile) -> Path | None:
        return None

    @contextmanager
    def _refusals(self, repository: str, revision: str | None, file: str = "") -> Iterator[None]:
        from modelscope_hub.errors import HubError

        try:
            yield
        except (HubError, OSError) as error:
            names = self._has_token, "MODELSCOPE_API_TOKEN"
            raise _translated(self, error, repository, revision, file, *names) from None


def _translated(
    hub: Hub, error: Exception, repository: str, revision: str | None, file: str, has_token: bool, variable: str
) -> Exception:
    """Our error for one of a client; an error of the disk is itself."""
    status, code = _status(error)
    if status is None:
        is_of_disk = isinstance(error, OSError) and error.errno is not None
        return error if is_of_disk else PassingTroubleError(plain_text(error.__cause__ or error)[:120])
    if status in _PASSING:
        return PassingTroubleError(f"the server answers with status {status}")
    host, give = hub.host, f"give a token (--token or {variable})"
    if code == "GatedRepo":
        who = "this account has not been let in" if has_token else give
        text = f"{repository} is gated on {host}: accept its terms on its page there; {who}"
    elif status == 401 and has_token:
        text = f"{host} does not accept the token; check --token, {variable} and the stored login"
    elif status == 401:
        text = f"{host} shows no {repository} without a token: check the name; if it is private or gated, {give}"
    elif status == 403:
        text = f"{host} does not let this token read {repository}; ask for access on its page, or use another token"
    elif status == 404 and file and code != "RevisionNotFound":
        text = f"{repository} on {host} has no file {plain_text(file)}; check the name, or try later"
    elif status == 404 and revision is not None and code in {"", "RevisionNotFound"}:
        name = plain_text(revision)[:80]
        text = f"{repository} on {host} has no revision {name!r}, or is not there; check both names"
    elif status == 404:
        text = f"{host} has no model {repository}; check the name"
    else:
        text = f"{host} refuses to give {repository} (status {status})"
    return CheckpointError(text)


def _status(error: BaseException | None) -> tuple[int | None, str]:
    """The status of an answer and the hub's code for the reason, of an error or of that which caused it."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return response.status_code, response.headers.get("X-Error-Code", "")
        if getattr(error, "status_code", None) is not None:
            return error.status_code, ""  # type: ignore[attr-defined]
        error = error.__cause__
    return None, ""


@contextmanager
def _answers_of(hub: Hub) -> Iterator[None]:
    try:
        yield
    except _STRANGE as error:
        raise CheckpointError(f"{hub.host} does not answer like {hub.name}; check its address") from error


def _checked(host: str, entries: Iterable[tuple[object, object, object]]) -> tuple[RemoteFile, ...]:
    """The files of a list from a server, which is not trusted."""
    files: dict[str, RemoteFile] = {}
    for name, size, digest in entries:
        if not isinstance(name, str) or not is_inside(name):
            raise CheckpointError(
                f"{host} lists a file called {plain_text(name)[:120]!r}, a name that could leave the folder; "
                "such a repository is refused"
            )
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_FILE_BYTES:
            raise CheckpointError(f"{host} lists no possible size for {name[:120]!r}; such a repository is refused")
        known = digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else ""
        if name.rpartition("/")[2] != MANIFEST_NAME:
            files[name] = RemoteFile(name, size, known)
    return tuple(files[name] for name in sorted(files))


def _host(endpoint: str) -> str:
    """The server of an http address. Raises RequestError."""
    try:
        parts = urlsplit(endpoint)
        if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0:
            return parts.hostname
    except ValueError:
        pass
    raise RequestError("the address of the hub must begin with https:// and name a server; check its variable")


def _check_token(token: str | None) -> bool:
    """Whether there is one. Raises RequestError for one that the clients could only print in an error."""
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token and token):
        raise RequestError("the token is empty or holds spaces, line breaks or other odd characters; paste it again")
    return token is not None


def _listener(advance: Callable[[int], object]) -> type:
    """A class as both clients want it for their bars of progress, which draws none and tells ``advance`` the bytes."""

    class Listener:
        total = None

        def __init__(self, *arguments: object, **options: object) -> None: ...

        def __enter__(self) -> "Listener":
            return self

        def __exit__(self, *error: object) -> None: ...

        def update(self, count: int) -> None:
            advance(count)

        def ignore(self, *arguments: object, **options: object) -> None: ...

        end = close = update_transfer = set_postfix_str = set_transfer_postfix_str = ignore

    return Listener
