"""Requests to a model hub with the standard library: redirects that keep a token home, errors in one sentence."""

import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from wan_core.errors import CheckpointError, RequestError

TIMEOUT_SECONDS = 30.0
_MAX_JSON_BYTES = 64_000_000
_LINKED_ETAG = "X-Linked-Etag"


class ConnectionTroubleError(Exception):
    """The connection or the server failed in a way that may pass; ``wait`` is what the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class StatusError(Exception):
    """The server refused: HTTP status and the hub's code for the reason."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Answer:
    """An open answer: ``read(n)`` gives what has arrived, at most n bytes, and nothing at its end.

    ``length`` are the bytes it announces; ``etag`` is the server's tag; ``linked_etag`` the tag of the stored file,
    from the hub that sent us to its storage.
    """

    status: int
    length: int | None
    etag: str
    linked_etag: str
    content_range: str
    read: Callable[[int], bytes]


class _Redirects(HTTPRedirectHandler):
    """Follows within http and https, never from https to http; the token only goes to the server it is for."""

    linked_etag = ""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        target = urljoin(req.full_url, newurl)
        old, new = urlsplit(req.full_url), urlsplit(target)
        if new.scheme != "https" and not (new.scheme == old.scheme == "http"):
            raise HTTPError(req.full_url, 400, "redirect refused", headers, fp)
        request = super().redirect_request(req, fp, code, msg, headers, target)
        if request is None:
            return None
        if (old.scheme, old.netloc) == (new.scheme, new.netloc):
            for name in {"Authorization", "Cookie"} & set(req.unredirected_hdrs):
                request.add_unredirected_header(name, req.unredirected_hdrs[name])
        # The hash of the file itself is known to the hub, not to the storage that it sends us to.
        self.linked_etag = headers.get(_LINKED_ETAG) or self.linked_etag
        return request


class HubClient:
    """Requests to one server, with a token as a header, or as a cookie where ``cookie`` names one.

    Raises RequestError for an address or a token that cannot be sent.
    """

    def __init__(self, endpoint: str, token: str | None, cookie: str | None = None) -> None:
        host = _host(endpoint)
        if not host:
            raise RequestError("the address of the hub must begin with https:// and name a server; check its variable")
        # The libraries below print a header that they refuse.
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token and token):
            raise RequestError(
                "the token is empty or holds spaces, line breaks or other odd characters; paste it again"
            )
        self.endpoint = endpoint.rstrip("/")
        self.host = host
        self.has_token = token is not None
        self._identity = ("Cookie", f"{cookie}={token}") if cookie else ("Authorization", f"Bearer {token}")
        self._redirects = _Redirects()
        self._opener = OpenerDirector()
        for handler in (
            ProxyHandler(),
            HTTPHandler(),
            HTTPSHandler(context=ssl.create_default_context()),
            HTTPDefaultErrorHandler(),
            HTTPErrorProcessor(),
            self._redirects,
        ):
            self._opener.add_handler(handler)

    @contextmanager
    def open(self, path: str, start: int = 0) -> Iterator[Answer]:
        """The answer to a GET of ``path`` below the endpoint, from byte ``start`` on.

        Raises StatusError, and ConnectionTroubleError for what may pass, also while the answer is read.
        """
        request = Request(self.endpoint + path, headers={"User-Agent": "wan-core"})
        if start:
            request.add_header("Range", f"bytes={start}-")
        if self.has_token:
            request.add_unredirected_header(*self._identity)
        self._redirects.linked_etag = ""
        with _named_trouble(), self._opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            yield _answer(response, self._redirects.linked_etag)

    def json(self, path: str) -> dict[str, Any]:
        """A JSON object. Raises as :meth:`open` does, CheckpointError when it is none."""
        with self.open(path) as answer:
            text = bytearray()
            while piece := answer.read(1 << 20):
                text += piece
                if len(text) > _MAX_JSON_BYTES:
                    raise CheckpointError(f"{self.host} answers with more than {_MAX_JSON_BYTES} bytes of JSON")
        if answer.length is not None and len(text) < answer.length:
            raise ConnectionTroubleError("the connection was cut")
        try:
            content = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.host} does not answer like a model hub; check its address") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.host} does not answer like a model hub; check its address")
        return content


def _answer(response: HTTPResponse, linked: str) -> Answer:
    headers = response.headers
    length = headers.get("Content-Length") or ""

    def read(count: int) -> bytes:
        try:
            return response.read1(count)
        except OSError as error:
            raise ConnectionTroubleError(_reason(error)) from None

    return Answer(
        status=response.status,
        length=int(length) if length.isdigit() else None,
        etag=_tag(headers.get("ETag")),
        linked_etag=_tag(headers.get(_LINKED_ETAG) or linked),
        content_range=headers.get("Content-Range") or "",
        read=read,
    )


def _host(endpoint: str) -> str:
    """The server of an http address, "" when it is none. Shown in messages: an address may hold a password."""
    try:
        parts = urlsplit(endpoint)
        return (parts.hostname or "") if parts.scheme in {"http", "https"} and parts.port != 0 else ""
    except ValueError:
        return ""


def _tag(value: str | None) -> str:
    return (value or "").removeprefix("W/").strip('"')


@contextmanager
def _named_trouble() -> Iterator[None]:
    """Turns the many errors of sockets, TLS and HTTP into ours, without addresses or headers."""
    try:
        yield
    except HTTPError as error:
        code = str(error.headers.get("X-Error-Code") or "") if error.headers else ""
        if error.code in {408, 425, 429, 500, 502, 503, 504}:
            wait = str(error.headers.get("Retry-After") or "") if error.headers else ""
            seconds = float(wait) if wait.isdigit() else 0.0
            raise ConnectionTroubleError(f"the server answers with status {error.code}", seconds) from None
        raise StatusError(error.code, code) from None
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise CheckpointError(
                "the certificate of the hub cannot be checked; install the system's CA certificates or name a file of "
                "them in SSL_CERT_FILE"
            ) from None
        raise ConnectionTroubleError(_reason(error.reason)) from None
    except HTTPException as error:
        raise ConnectionTroubleError(f"the answer breaks off ({type(error).__name__})") from None
    except (TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise ConnectionTroubleError(_reason(error)) from None


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_SECONDS:g} seconds"
    return str(getattr(error, "strerror", None) or type(error).__name__)
