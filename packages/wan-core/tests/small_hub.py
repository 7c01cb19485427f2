"""A model hub on loopback: what the clients of Hugging Face and ModelScope ask for, with ranges, tokens and faults."""

import hashlib
import json
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40
LARGE_BYTES = 10_000
"""Files of this size and more are listed with their SHA-256, others with git's hash."""


@dataclass
class SmallHub:
    """One repository, ``owner/name``, and what goes wrong with it."""

    files: dict[str, bytes]
    address: str = ""
    repository: str = "owner/name"
    revisions: tuple[str, ...] = ("main", "master", COMMIT)
    token: str | None = None
    gated: bool = False
    forbidden: bool = False
    ranges: bool = True
    cut_seed: int | None = None
    bytes_per_second: float = 0.0
    statuses: list[int] = field(default_factory=list)  # given once each, instead of an answer
    cut_lists: int = 0  # so many lists break off
    served: dict[str, bytes] = field(default_factory=dict)  # other contents than the listed ones
    redirect_to: str | None = None
    chunk_store: str = ""  # the address of a store of chunks (Xet)
    chunked: dict[str, str] = field(default_factory=dict)  # the hash there of each file that is in it
    entries: list[dict[str, Any]] | None = None
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.cut_seed)

    def listing(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_hash(content)}
            if len(content) >= LARGE_BYTES:
                entry["lfs"] = {"sha256": etag(content), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        siblings = siblings if self.entries is None else self.entries
        return {"id": self.repository, "sha": COMMIT, "cardData": {"license": "apache-2.0"}, "siblings": siblings}

    def modelscope_listing(self) -> dict[str, Any]:
        files = [
            {"Path": name, "Size": len(content), "Sha256": hashlib.sha256(content).hexdigest(), "Type": "blob"}
            for name, content in self.files.items()
        ]
        return {"Code": 200, "Success": True, "Data": {"Files": [*files, {"Path": "high", "Type": "tree", "Size": 0}]}}


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if len(content) >= LARGE_BYTES else git_hash(content)


@contextmanager
def serving(hub: SmallHub) -> Iterator[SmallHub]:
    """The hub at work on a free port of loopback."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: SmallHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        hub.requests.append((self.command, self.path, dict(self.headers.items())))
        if hub.statuses:
            return self._refuse(hub.statuses.pop(0))
        path = unquote(url.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if path.startswith("/storage/"):
            return self._send(path.removeprefix("/storage/"))
        if not self._may_enter():
            return None
        if path == f"/api/models/{hub.repository}":
            return self._json(hub.listing())
        if path == f"/api/models/{hub.repository}/revision/{path.rpartition('/')[2]}":
            return self._list(path.rpartition("/")[2], hub.listing())
        if path == f"/api/v1/models/{hub.repository}":
            return self._json({"Code": 200, "Success": True, "Data": {"License": "Apache License 2.0"}})
        if path == f"/api/v1/models/{hub.repository}/repo/files":
            return self._list(query["Revision"], hub.modelscope_listing())
        if path == f"/api/v1/models/{hub.repository}/repo":
            return self._redirect(query["FilePath"]) or self._send(query["FilePath"])
        if path.endswith("/xet-read-token"):
            access = {"X-Xet-Access-Token": "t", "X-Xet-Token-Expiration": "9999999999"}
            return self._json({}, {"X-Xet-Cas-Url": hub.chunk_store, **access})
        if path.startswith(f"/{hub.repository}/resolve/"):
            name = path.removeprefix(f"/{hub.repository}/resolve/").partition("/")[2]
            return self._refuse(403, "GatedRepo") if hub.gated else self._redirect(name) or self._send(name)
        return self._refuse(404, "RepoNotFound")

    def end_headers(self) -> None:
        self.send_header("Connection", "close")
        super().end_headers()

    do_HEAD = do_GET  # noqa: N815

    def _may_enter(self) -> bool:
        hub = self.hub
        given = self.headers.get("Authorization") or self.headers.get("Cookie")
        if hub.token is not None and given not in {f"Bearer {hub.token}", f"m_session_id={hub.token}"}:
            self._refuse(401, "" if given else "RepoNotFound")
            return False
        if hub.forbidden:
            self._refuse(403)
            return False
        return True

    def _redirect(self, name: str) -> bool:
        if self.hub.redirect_to is None or name not in self.hub.files:
            return False
        self.send_response(302)
        self.send_header("Location", f"{self.hub.redirect_to}/storage/{name}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-ETag", f'"{etag(self.hub.files[name])}"')
        self.send_header("X-Linked-Size", str(len(self.hub.files[name])))
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def _refuse(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _list(self, revision: str, content: dict[str, Any]) -> None:
        if revision in self.hub.revisions:
            self._json(content)
        else:
            self._refuse(404, "RevisionNotFound")

    def _json(self, content: dict[str, Any], headers: Mapping[str, str] = MappingProxyType({})) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        cut = self.hub.cut_lists > 0
        self.hub.cut_lists -= cut
        self.wfile.write(text[:-5] if cut else text)

    def _send(self, name: str) -> None:
        hub = self.hub
        if name not in hub.files:
            return self._refuse(404, "EntryNotFound")
        content = hub.served.get(name, hub.files[name])
        wanted = self.headers.get("Range") if hub.ranges else None
        first, _, last = (wanted or "bytes=0-").removeprefix("bytes=").partition("-")
        start, stop = int(first), min(len(content), int(last or len(content)) + 1)
        if wanted and start >= len(content):
            return self._refuse(416)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{etag(hub.files[name])}"')
        if name in hub.chunked:
            self.send_header("X-Xet-Hash", hub.chunked[name])
            self.send_header("X-Xet-Refresh-Route", f"{hub.address}/xet-read-token")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        body = content[start:stop] if self.command == "GET" else b""
        if hub.cut_seed is not None and len(body) > 1000 and hub.random.random() < 0.8:
            body = body[: hub.random.randrange(len(body))]
        self._trickle(body)
        return None

    def _trickle(self, body: bytes) -> None:
        step = 1 << 16
        for start in range(0, len(body), step):
            piece = body[start : start + step]
            try:
                self.wfile.write(piece)
            except OSError:
                return
            self.hub.sent += len(piece)
            if self.hub.bytes_per_second:
                time.sleep(len(piece) / self.hub.bytes_per_second)
