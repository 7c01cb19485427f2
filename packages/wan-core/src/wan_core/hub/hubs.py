"""What a model repository holds, by its own list: names, sizes and hashes, from Hugging Face or ModelScope."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import quote

from wan_core.errors import CheckpointError, RequestError
from wan_core.files import plain_text
from wan_core.hub.http import HubClient, StatusError
from wan_core.hub.manifest import MANIFEST_NAME, is_inside

HubName = Literal["huggingface", "modelscope"]
MODELSCOPE_ENDPOINT = "https://modelscope.cn"

_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_HEX = {"git": re.compile(r"[0-9a-f]{40}"), "sha256": re.compile(r"[0-9a-f]{64}")}
_MAX_FILES = 100_000
_MAX_FILE_BYTES = 1 << 44
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})


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
    """A place that publishes models."""

    name: HubName
    client: HubClient

    def list_files(self, repository: str, revision: str | None) -> Listing:
        """The files of a repository. Raises CheckpointError with the reason in one sentence."""

    def path_of(self, listing: Listing, file: RemoteFile) -> str:
        """The address of a file below the hub's endpoint."""

    def cached(self, repository: str, file: RemoteFile) -> Path | None:
        """The same file in a cache on this machine, by its hash."""


def open_hub(name: HubName, token: str | None = None) -> Hub:
    """The hub called ``name`` with the environment's settings; ``token`` overrides that of the environment.

    Hugging Face: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE; ModelScope: MODELSCOPE_ENDPOINT,
    MODELSCOPE_API_TOKEN. Raises CheckpointError in offline mode, RequestError for an impossible token or address.
    """
    return _HuggingFace(token) if name == "huggingface" else _ModelScope(token)


def check_repository(repository: str) -> str:
    """``repository`` when it has the form OWNER/NAME. Raises RequestError."""
    if not _REPOSITORY.fullmatch(repository):
        raise RequestError(f"a repository has the form OWNER/NAME, got {plain_text(repository)[:120]!r}")
    return repository


class _HuggingFace:
    name: HubName = "huggingface"

    def __init__(self, token: str | None) -> None:
        from huggingface_hub import constants, get_token

        for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            if os.environ.get(variable, "").upper() in _TRUE:
                raise CheckpointError(
                    f"{variable} is set, so nothing can be fetched: unset it, or copy the model's folder from another "
                    "machine and check it with 'wan verify'"
                )
        # By hand, because the package reads its variables once, when it is imported.
        self.client = HubClient(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT, token or get_token())
        home = os.environ.get("HF_HOME")
        cache = os.environ.get("HF_HUB_CACHE") or (f"{home}/hub" if home else constants.HF_HUB_CACHE)
        self._cache = Path(cache).expanduser()

    def list_files(self, repository: str, revision: str | None) -> Listing:
        wanted = quote(revision or "main", safe="")
        content = _json(self, repository, revision, f"/api/models/{repository}/revision/{wanted}?blobs=true")
        card = content.get("cardData")
        commit = content.get("sha")
        return Listing(
            repository,
            commit if isinstance(commit, str) and _HEX["git"].fullmatch(commit) else revision or "main",
            _licence(card if isinstance(card, dict) else {}),
            _checked(self.client.host, content.get("siblings"), _hugging_face_file),
        )

    def path_of(self, listing: Listing, file: RemoteFile) -> str:
        return f"/{listing.repository}/resolve/{quote(listing.revision, safe='')}/{quote(file.name)}"

    def cached(self, repository: str, file: RemoteFile) -> Path | None:
        path = self._cache / f"models--{repository.replace('/', '--')}" / "blobs" / (file.digest or "-")
        try:
            return path if path.is_file() and path.stat().st_size == file.size else None
        except OSError:
            return None


class _ModelScope:
    name: HubName = "modelscope"

    def __init__(self, token: str | None) -> None:
        self.client = HubClient(
            os.environ.get("MODELSCOPE_ENDPOINT") or MODELSCOPE_ENDPOINT,
            token or os.environ.get("MODELSCOPE_API_TOKEN") or None,
            cookie="m_session_id",
        )

    def list_files(self, repository: str, revision: str | None) -> Listing:
        base = f"/api/v1/models/{repository}"
        wanted = revision or "master"
        query = f"Revision={quote(wanted, safe='')}"
        model = _data(self, repository, None, _json(self, repository, None, base))
        content = _data(
            self, repository, revision, _json(self, repository, revision, f"{base}/repo/files?{query}&Recursive=true")
        )
        entries = content.get("Files")
        blobs = [entry for entry in entries if _is_blob(entry)] if isinstance(entries, list) else entries
        files = _checked(self.client.host, blobs, _modelscope_file)
        return Listing(repository, wanted, plain_text(model.get("License") or "")[:80], files)

    def path_of(self, listing: Listing, file: RemoteFile) -> str:
        query = f"Revision={quote(listing.revision, safe='')}&FilePath={quote(file.name, safe='')}"
        return f"/api/v1/models/{listing.repository}/repo?{query}"

    def cached(self, repository: str, file: RemoteFile) -> Path | None:
        return None


def _json(hub: Hub, repository: str, revision: str | None, path: str) -> dict[str, Any]:
    try:
        return hub.client.json(path)
    except StatusError as error:
        raise refusal(hub, repository, revision, error) from None


def _data(hub: Hub, repository: str, revision: str | None, content: dict[str, Any]) -> dict[str, Any]:
    if content.get("Success") is False:  # also sent with status 200
        code = content.get("Code")
        status = code if isinstance(code, int) and 400 <= code < 600 else 404
        raise refusal(hub, repository, revision, StatusError(status, ""))
    data = content.get("Data")
    if not isinstance(data, dict):
        raise CheckpointError(f"{hub.client.host} does not answer like {hub.name}; check its address")
    return data


def refusal(hub: Hub, repository: str, revision: str | None, error: StatusError) -> CheckpointError:
    """The one sentence for a request that the hub refused."""
    host = hub.client.host
    token = "HF_TOKEN" if hub.name == "huggingface" else "MODELSCOPE_API_TOKEN"
    if error.code == "GatedRepo":
        who = "this account has not been let in" if hub.client.has_token else f"give a token (--token or {token})"
        return CheckpointError(f"{repository} is gated on {host}: accept its terms on its page there; {who}")
    if error.status == 401 and hub.client.has_token:
        return CheckpointError(f"{host} does not accept the token; check --token, {token} and the stored login")
    if error.status == 401:
        return CheckpointError(
            f"{host} shows no {repository} without a token: check the name; if it is private or gated, give a token "
            f"(--token or {token})"
        )
    if error.status == 403:
        return CheckpointError(
            f"{host} does not let this token read {repository}; ask for access on its page, or use another token"
        )
    if error.code == "RevisionNotFound" or (error.status == 404 and revision is not None and error.code == ""):
        return CheckpointError(
            f"{repository} on {host} has no revision {plain_text(revision)[:80]!r}, or is not there; check both names"
        )
    if error.status == 404:
        return CheckpointError(f"{host} has no model {repository}; check the name")
    return CheckpointError(f"{host} refuses to give {repository} (status {error.status})")


def _checked(host: str, entries: object, parse: Any) -> tuple[RemoteFile, ...]:
    """The files of a list from a server, which is not trusted."""
    if not isinstance(entries, list) or len(entries) > _MAX_FILES:
        raise CheckpointError(f"{host} gives no list of files, or one of more than {_MAX_FILES}; check its address")
    files: dict[str, RemoteFile] = {}
    for entry in entries:
        name, size, digest = parse(entry) if isinstance(entry, dict) else (None, None, None)
        if not isinstance(name, str) or not is_inside(name):
            raise CheckpointError(
                f"{host} lists a file called {plain_text(name)[:120]!r}, a name that could leave the folder; "
                "such a repository is refused"
            )
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_FILE_BYTES:
            raise CheckpointError(f"{host} lists no possible size for {name[:120]!r}; such a repository is refused")
        known = digest if isinstance(digest, str) and any(form.fullmatch(digest) for form in _HEX.values()) else ""
        if name.rpartition("/")[2] != MANIFEST_NAME:
            files[name] = RemoteFile(name, size, known)
    return tuple(files[name] for name in sorted(files))


def _hugging_face_file(entry: dict[str, Any]) -> tuple[object, object, object]:
    large = entry.get("lfs")
    if isinstance(large, dict):
        return entry.get("rfilename"), large.get("size"), large.get("sha256") or large.get("oid")
    return entry.get("rfilename"), entry.get("size"), entry.get("blobId")


def _modelscope_file(entry: dict[str, Any]) -> tuple[object, object, object]:
    return entry.get("Path"), entry.get("Size"), entry.get("Sha256")


def _is_blob(entry: object) -> bool:
    return not (isinstance(entry, dict) and entry.get("Type") == "tree")


def _licence(card: dict[str, Any]) -> str:
    names = [card.get("license_name") or card.get("license"), card.get("license_link")]
    return plain_text(" ".join(str(name) for name in names if name))[:200]
