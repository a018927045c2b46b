"""The client of a course server: hand in, ask after, read the leaderboard. Decides nothing and remembers nothing.

Run: softlabel course status --server URL
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.course import protocol
from pipeline.course.address import Address
from pipeline.course.exchange import Answer, Form, Limits, NoAnswer, exchange
from pipeline.course.leaderboard import Leaderboard, leaderboard_of
from pipeline.course.token import Token
from pipeline.errors import CourseError

Read = TypeVar("Read")

_OUT_OF_REACH = "see whether --server is right and you are on the network of the course, then try again"
_NOT_ITSELF = "see whether --server is the address of the course server, or try again later"


class CourseServer:
    """One server. Each call is one request; errors are a sentence each, without the token."""

    def __init__(self, address: Address, limits: Limits | None = None) -> None:
        self.address = address
        self._limits = limits or Limits()

    def submit(self, token: Token, content: bytes) -> protocol.Accepted:
        """Send a file, once. NoAnswer and BadAnswer leave open whether it arrived; Refused says that it did not."""
        self.address.check_without(token)
        form = Form({"token": token.reveal(), "file": ("student_model.pt", content, "application/octet-stream")})
        answer = exchange("POST", f"{self.address.url}/submit", token=token, form=form, limits=self._limits)
        return protocol.accepted_of(answer, token, time.time())

    def attempts(self, token: Token) -> list[protocol.Attempt]:
        """All attempts of a token, oldest first; none where the server says 404."""
        self.address.check_without(token)
        path = f"submission-status/{token.in_path()}"
        return self._get(path, token, lambda answer: protocol.attempts_of(answer, token))

    def leaderboard(self) -> Leaderboard:
        """What everybody can see; no token is sent."""
        return self._get("leaderboard3", None, lambda answer: leaderboard_of(protocol.check_page(answer)))

    def _get(self, path: str, token: Token | None, read: Callable[[Answer], Read]) -> Read:
        problem = ""
        try:
            answer = exchange("GET", f"{self.address.url}/{path}", token=token, form=None, limits=self._limits)
            return read(answer)
        except NoAnswer as error:
            problem = f"{error}: {_OUT_OF_REACH}"
        except protocol.BadAnswer as error:
            problem = f"{error}: {_NOT_ITSELF}"
        raise CourseError(f"{self.address.url} {problem}")
