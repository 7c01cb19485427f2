"""An endpoint of OpenAI's chat protocol on this machine, which answers what a test puts into it."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def said(text: Any, **more: Any) -> dict[str, Any]:
    """The body of a whole answer; ``more`` goes into its choice."""
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}]}


@dataclass
class Reply:
    """One reply: a body (JSON unless bytes), or, with ``hangs``, none until the test is over."""

    body: Any = field(default_factory=lambda: said("fine"))
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: bool = False


@dataclass
class ChatServer:
    """What the endpoint will answer, in order (the last one for ever), and what it was asked."""

    url: str
    replies: list[Reply]
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@contextmanager
def chat_server(*replies: Reply) -> Iterator[ChatServer]:
    """The endpoint, as long as the block lasts."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            server.keys.append(self.headers["Authorization"])
            server.paths.append(self.path)
            reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
            if reply.hangs:
                over.wait()
                return
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = ChatServer(f"http://127.0.0.1:{http.server_port}/v1", list(replies) or [Reply()])
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            over.set()
            http.shutdown()
            thread.join()
