"""What a course server may do instead of its protocol, by name: how, and what a user is to read about it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable

from .loopback import Handler

FINE = [{"attempt": 1, "score": 7.5, "model_size": 1.5, "status": "successful"}]
ACCEPTED = {"message": "Submission received", "attempt": 1}
HTML = b"<!doctype html><html><body>Please log in</body></html>"
Misbehaviour = Callable[[Handler], None]


def drop(handler: Handler) -> None:
    """No answer at all."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def reset(handler: Handler) -> None:
    """The kernel's own refusal in place of an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    os.close(handler.connection.detach())


def hang(handler: Handler) -> None:
    """Silence."""
    handler.server.is_over.wait(20)


def drip(handler: Handler) -> None:
    """A byte now and then: each within any timeout, the whole of it never."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    while not handler.server.is_over.wait(0.05):
        handler.wfile.write(b" ")


def drip_headers(handler: Handler) -> None:
    """The same before the answer proper."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not handler.server.is_over.wait(0.05):
        handler.wfile.write(b"x")


def always(
    content: bytes | object, kind: str | None = "application/json", status: int = 200, **headers: str
) -> Misbehaviour:
    """The same answer to everybody: bytes as they are, anything else as JSON."""
    encoded = content if isinstance(content, bytes) else json.dumps(content).encode()

    def answer(handler: Handler) -> None:
        if handler.command == "POST":
            handler.read_form()
        handler.answer(encoded, kind, status, **headers)

    return answer


def raw(content: bytes) -> Misbehaviour:
    """Bytes in place of HTTP."""
    return lambda handler: handler.wfile.write(content) and None


def echo(kind: str, status: int = 200, encode: Callable[[str], str] = str) -> Misbehaviour:
    """An answer that repeats the token."""

    def answer(handler: Handler) -> None:
        token = next(iter(handler.server.attempts))
        handler.answer(encode(token).encode(), kind, status)

    return answer


def with_field(name: str, value: object) -> list[dict[str, object]]:
    """A list of one attempt, with another value."""
    return [{**FINE[0], name: value}]


SHORT = ("--timeout", 0.4)
ENDLESS = ("hangs", "drips", "drips headers")
"""Those by which the time is measured; the others end by themselves, on a busy machine a little later."""

NO_ANSWER: dict[str, tuple[Misbehaviour, str]] = {
    "drops the connection": (drop, "dropped the connection before its answer was whole"),
    "resets the connection": (reset, "dropped the connection before its answer was whole"),
    "hangs": (hang, "gave no whole answer within 0.4 s"),
    "drips": (drip, "gave no whole answer within 0.4 s"),
    "drips headers": (drip_headers, "gave no whole answer within 0.4 s"),
    "breaks off": (always(FINE, Content_Length="5000"), "broke off in the middle of its answer"),
    "breaks off a chunk": (
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\n[{"), "broke off in the middle of its answer"
    ),
    "speaks no HTTP": (raw(b"220 mail.example ESMTP\r\n"), "answered with something that is no HTTP"),
    "damages its compression": (
        always(b"no gzip", Content_Encoding="gzip"), "answered with something that is no HTTP"
    ),
    "is endless": (always(b"[" + b" " * 1_100_000 + b"]"), "answered with more than 1 MB"),
}  # fmt: skip

NO_JSON: dict[str, tuple[Misbehaviour, str]] = {
    "HTML": (always(HTML, "text/html"), "answered with an HTML page instead of JSON"),
    "HTML that says it is JSON": (always(HTML), "answered with an HTML page instead of JSON"),
    "JSON that says it is HTML": (always(FINE, "text/html"), "answered with an HTML page instead of JSON"),
    "another media type": (always(FINE, "image/png\x1b"), "answered with image/png\\x1b instead of JSON"),
    "no JSON": (always(b"[{"), "answered with something that is no JSON"),
    "nothing": (always(b""), "answered with nothing"),
    "too short a length": (always(FINE, Content_Length="9"), "answered with something that is no JSON"),
    "NaN": (always(with_field("score", float("nan"))), "answered with something that is no JSON"),
    "deep JSON": (always(b"[" * 100_000), "answered with something that is no JSON"),
    "long number": (always(b"[" + b"9" * 5000 + b"]"), "answered with something that is no JSON"),
    "redirect": (
        always(b"", None, 302, Location="http://user@elsewhere.example/submission-status/x"),
        "redirects (HTTP 302) to elsewhere.example, which is not followed",
    ),
    "redirect to nowhere": (always(b"", None, 301, Location="http://[/"), "redirects (HTTP 301) to another page"),
    "500": (always(HTML, "text/html", 500), "answered HTTP 500 (it failed): see"),
    "502": (always(b"", None, 502), "answered HTTP 502 (the server behind it does not answer): see"),
    "503 in JSON": (always({"error": "closed\x1b[2J"}, status=503), '(it is down or too busy): "closed\\x1b[2J": see'),
}  # fmt: skip

NO_STATUS: dict[str, tuple[Misbehaviour, str]] = {
    "401": (always({"error": "who?"}, status=401), 'answered HTTP 401 (it does not know the token): "who?": see'),
    "418": (always(b"", None, 418), "answered HTTP 418 (it does not take the question): see"),
    "an object": (always({"attempts": FINE}), "answered with JSON that is an object instead of a list of attempts"),
    "null": (always(None), "answered with JSON that is null instead of a list"),
    "a list of numbers": (always([3]), "there is a number instead of an attempt"),
    "a missing field": (always([{"attempt": 1, "status": "pending"}]), "an attempt that has no score"),
    "a text as score": (always(with_field("score", "7.5")), "an attempt whose score is no number"),
    "a bool as score": (always(with_field("score", True)), "an attempt whose score is no number"),
    "an infinite score": (always(b'[{"attempt": 1, "score": 1e999, "model_size": 1, "status": "x"}]'), "score is no n"),
    "a text as size": (always(with_field("model_size", "1 MB")), "an attempt whose model_size is no number"),
    "half an attempt": (always(with_field("attempt", 1.5)), "an attempt whose attempt is no whole number"),
    "no word as status": (always(with_field("status", None)), "an attempt whose status is no word"),
}  # fmt: skip

NO_SUBMISSION: dict[str, tuple[Misbehaviour, str]] = {
    "a list": (always([ACCEPTED]), "answered with JSON that is a list instead of an object with a message"),
    "an object of nothing": (always({}), "answered with JSON that has neither a message nor an error"),
    "a number as message": (always({"message": 3}), "answered with JSON that has neither a message nor an error"),
    "a text as attempt": (always({**ACCEPTED, "attempt": "one"}), "whose attempt is no number of an attempt"),
    "408": (always(b"", None, 408), "answered HTTP 408 (it got the question too slowly)"),
}

REFUSALS: dict[str, tuple[Misbehaviour, str]] = {
    "error with 200": (always({"error": "not TorchScript"}), 'refuses the file: "not TorchScript"; not accepted'),
    "400 in JSON": (always({"error": "no file"}, status=400), '(it does not take the question): "no file"; not acc'),
    "401": (
        always({"error": "bad"}, status=401),
        'answered HTTP 401 (it does not know the token): "bad"; not accepted',
    ),
    "404 page": (always(HTML, "text/html", 404), "HTTP 404 (there is no course server at that address); not accepted"),
    "413": (always(b"", None, 413), "answered HTTP 413 (the file is too large for it); not accepted"),
}

NO_PAGE: dict[str, tuple[Misbehaviour, str]] = {
    "JSON": (always(FINE), "answered with application/json instead of an HTML page"),
    "no table": (always(HTML, "text/html"), "answered with a page that has no table of teams"),
    "nothing": (always(b"", None), "answered with a page that has no table of teams"),
    "404": (always(HTML, "text/html", 404), "HTTP 404 (there is no course server at that address)"),
    "too large": (always(b"<table>" * 200_000, "text/html"), "answered with more than 1 MB"),
    "hangs": (hang, "gave no whole answer within 0.4 s"),
    "redirect": (always(b"", None, 307, Location="/login"), "redirects (HTTP 307) to another page of its own"),
}
