"""One POST of JSON over HTTP: with a deadline, without redirects, and with its failures told apart.

The standard library's client is used. A redirect is not followed: it would carry the key to another host.
"""

import http.client
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from wan_core.errors import ConfigError

_MAX_BYTES = 16 << 20
_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


@dataclass(frozen=True)
class Reply:
    """What a server sent: its status, the body, and how many seconds it asks to wait (None: it does not say)."""

    status: int
    body: bytes = field(repr=False)
    wait: float | None = None

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in _TRANSIENT


class NoReply(Exception):  # noqa: N818 - no error of the house: the endpoint turns it into one
    """No whole reply came; ``is_transient`` tells whether another try may bring one."""

    def __init__(self, reason: str, *, is_transient: bool = True) -> None:
        super().__init__(reason)
        self.is_transient = is_transient


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **values: Any) -> None:
        return None


def check_url(url: str, what: str = "the base URL") -> str:
    """An address without its trailing slashes. Raises ConfigError for one that is none, or that holds a password."""
    try:
        parts = urllib.parse.urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{what} is no address; give one such as https://api.openai.com/v1") from error
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError(f"{what} must hold no user, password or query; keys come from the environment")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not url.strip().isascii():
        raise ConfigError(f"{what} is http:// or https:// and a host, got {url.strip()[:80]!r}")
    return url.strip().rstrip("/")


def post(url: str, body: bytes, headers: Mapping[str, str], timeout: float) -> Reply:
    """Send a body and read the whole reply within ``timeout`` seconds, whatever its status. Raises NoReply."""
    deadline = time.monotonic() + timeout
    opener = urllib.request.build_opener(_NoRedirect)
    request = urllib.request.Request(url, body, dict(headers), method="POST")
    try:
        with opener.open(request, timeout=timeout) as response:
            return Reply(response.status, _read(response, deadline))
    except urllib.error.HTTPError as error:
        with error:
            return _failed(error, deadline)
    except urllib.error.URLError as error:
        raise _no_reply(error.reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise _no_reply(error) from error


def _failed(error: urllib.error.HTTPError, deadline: float) -> Reply:
    try:
        body = _read(error, deadline)
    except (OSError, http.client.HTTPException):
        body = b""
    return Reply(error.code, body, _seconds(error.headers.get("Retry-After")))


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdigit() else None


def _read(response: IO[bytes], deadline: float) -> bytes:
    """The body, read in pieces: the socket's own timeout starts anew with each byte that a slow server sends."""
    read = getattr(response, "read1", response.read)
    pieces, size = list[bytes](), 0
    while piece := read(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if size > _MAX_BYTES:
            raise NoReply(f"its answer is longer than {_MAX_BYTES >> 20} MiB", is_transient=False)
        if time.monotonic() > deadline:
            raise TimeoutError
    if getattr(response, "length", None):  # what is still to come; reading in pieces does not tell
        raise http.client.IncompleteRead(b"")
    return b"".join(pieces)


def _no_reply(error: object) -> NoReply:
    if isinstance(error, TimeoutError):
        return NoReply("no answer in time")
    if isinstance(error, ssl.SSLCertVerificationError):
        return NoReply(f"its certificate is not trusted ({error.verify_message})", is_transient=False)
    if isinstance(error, http.client.IncompleteRead):
        return NoReply("its answer ends too early")
    reason = getattr(error, "strerror", None) or error
    return NoReply(str(reason) or type(error).__name__)
