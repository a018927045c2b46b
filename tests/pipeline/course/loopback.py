"""A course server on loopback that follows the protocol, and misbehaves where it is told to.

Run by hand: python tests/pipeline/course/loopback.py
"""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
from collections.abc import Callable
from email import policy
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

TEAMS = [("1", "Ärzte <3", "0.712", "1.4"), ("2", "nevus\x1b[31m", "0.70", "24.9")]
ROWS = "".join("<tr>" + "".join(f"<td>{cell.replace('<', '&lt;')}</td>" for cell in team) + "</tr>\n" for team in TEAMS)
PAGE = f"""<!doctype html><html><head><title>Leaderboard</title></head><body><h1>Leaderboard</h1>
<table class="a"><thead><tr><th>Rank</th><th>Team</th><th>F1</th><th>Size (MB)</th></tr></thead>
<tbody>{ROWS}</tbody></table></body></html>"""


class Handler(BaseHTTPRequestHandler):
    """One request: the misbehaviour for its route, or else the protocol."""

    server: CourseService
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Status and leaderboard."""
        route, token = self._route()
        if route == "status":
            found = self.server.attempts.get(token)
            self.json(found, 200) if found else self.json({"error": "no submissions"}, 404)
        elif route == "leaderboard":
            self.answer(PAGE.encode(), "text/html; charset=utf-8")
        elif route is not None:
            self.json({"error": "nothing here"}, 404)

    def do_POST(self) -> None:
        """A submission."""
        self.fields: dict[str, bytes] = {}
        route, _ = self._route()
        if route == "submit":
            self.read_form()
            self.json(*self.server.take(self.fields["token"].decode(), self.fields["file"]))

    def _route(self) -> tuple[str | None, str]:
        """(what is asked for, token); None where a misbehaviour has answered."""
        self.close_connection = True
        path = urllib.parse.urlsplit(self.path).path.removeprefix(self.server.prefix)
        first, _, rest = path.lstrip("/").partition("/")
        route = {"submission-status": "status", "leaderboard3": "leaderboard"}.get(first, first)
        self.server.asked.append((self.command, self.path, dict(self.headers)))
        misbehaviour = self.server.misbehaviour.get(route)
        if misbehaviour is None:
            return route, urllib.parse.unquote(rest)
        misbehaviour(self)
        return None, ""

    def read_form(self) -> None:
        """The multipart form, which the protocol's /submit takes; it is there once."""
        if self.fields:
            return
        n_bytes = int(self.headers["Content-Length"])
        content = self.rfile.read(n_bytes)
        if len(content) < n_bytes:
            raise ConnectionError("the client gave up")
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        for part in BytesParser(policy=policy.HTTP).parsebytes(head + content).iter_parts():
            name = part.get_param("name", header="content-disposition")
            self.fields[str(name)] = part.get_payload(decode=True)

    def json(self, found: Any, status: int = 200, **headers: str) -> None:
        """An answer as the protocol has it."""
        self.answer(json.dumps(found).encode(), "application/json", status, **headers)

    def answer(self, content: bytes, kind: str | None, status: int = 200, **headers: str) -> None:
        """Any answer; `_` in a header's name stands for `-`."""
        self.send_response(status)
        if kind is not None:
            self.send_header("Content-Type", kind)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        """Nothing on standard error."""


class CourseService(ThreadingHTTPServer):
    """The server in a thread of its own. Use in a `with` block."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.attempts: dict[str, list[dict[str, Any]]] = {}
        self.misbehaviour: dict[str, Callable[[Handler], None]] = {}
        """By route (submit, status, leaderboard): what it does instead."""
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.files: list[bytes] = []
        self.prefix = ""
        self.is_over = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}{self.prefix}"

    @property
    def n_posts(self) -> int:
        """How often somebody tried to hand something in."""
        return sum(method == "POST" for method, _, _ in self.asked)

    def take(self, token: str, content: bytes) -> tuple[dict[str, Any], int]:
        """A submission by the protocol, which is scored at once as pending."""
        self.files.append(content)
        known = self.attempts.setdefault(token, [])
        number = len(known) + 1
        known.append({"attempt": number, "score": None, "model_size": len(content) / 1e6, "status": "pending"})
        return {"message": "Submission received", "attempt": number}, 200

    def score(self, token: str, *scores: float | None, last: str = "successful") -> None:
        """Let a token have attempts with these scores."""
        self.attempts[token] = [
            {"attempt": number, "score": score, "model_size": 1.5, "status": "successful"}
            for number, score in enumerate(scores, 1)
        ]
        self.attempts[token][-1]["status"] = last

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing on standard error: clients that hang up are what is tested."""

    def __enter__(self) -> CourseService:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_over.set()
        self.shutdown()
        self.server_close()
        self._thread.join()


if __name__ == "__main__":
    with CourseService() as service:
        print(service.url, flush=True)  # noqa: T201
        time.sleep(3600)
