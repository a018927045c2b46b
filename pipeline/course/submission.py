"""Handing in: what speaks against it, sending once, and what became of it. Never sends a second time by itself.

Run: softlabel course submit student_model.pt --server URL
"""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from pipeline.course.check import CheckedFile
from pipeline.course.exchange import NoAnswer
from pipeline.course.history import History, Submission
from pipeline.course.leaderboard import aligned
from pipeline.course.protocol import Accepted, Attempt, BadAnswer, Refused, TooEarly
from pipeline.course.server import CourseServer
from pipeline.course.token import Token
from pipeline.errors import CourseError, SettingError

log = logging.getLogger(__name__)

WAIT = timedelta(minutes=15)
"""The server takes one submission in so long."""


@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """What the user knows and wants."""

    expected_score: float | None = None
    """What the file should get; a better attempt is then replaced only after a question."""
    dry_run: bool = False
    yes: bool = False
    """Send in spite of warnings."""

    def __post_init__(self) -> None:
        if self.expected_score is not None and not math.isfinite(self.expected_score):
            raise SettingError(f"expected_score must be a finite number, got {self.expected_score}")


def submit(
    server: CourseServer,
    token: Token,
    file: CheckedFile,
    history: History,
    config: SubmitConfig,
    confirm: Callable[[], bool] | None,
) -> Accepted | None:
    """Hand a checked file in, once; None after a dry run. `confirm` asks the user; None: there is nobody to ask.

    CourseError where it was refused, not sent, or where nobody knows; each says which.
    """
    server.address.check_without(token)  # which is remembered
    attempts, warnings = _looked_up(server, token)
    if attempts is not None:
        log.info("%s", attempts_text(attempts))
        warnings += replaced(attempts, config.expected_score)
    warnings += repeated(history.submissions(), file.sha256, datetime.now(timezone.utc))
    for warning in warnings:
        log.warning("warning: %s", warning)
    if config.dry_run:
        return None
    if warnings and not config.yes:
        if confirm is None:
            raise CourseError("nothing was sent, because of the warnings above: --yes sends it all the same")
        if not confirm():
            raise CourseError("nothing was sent")
    return _send(server, token, file, history, attempts)


def attempts_text(attempts: Sequence[Attempt]) -> str:
    """A table of the attempts; the best score and the latest attempt, which is the one that counts, are marked."""
    if not attempts:
        return "no submission of this token yet"
    best, latest = _best(attempts), attempts[-1]
    rows: list[tuple[str, ...]] = [("attempt", "status", "score", "model size", "")]
    for one in attempts:
        marks = [word for word, other in (("best", best), ("latest: counts", latest)) if one is other]
        numbers = ("-" if value is None else f"{value:.6g}" for value in (one.score, one.model_size))
        rows.append((str(one.attempt), one.status, *numbers, ", ".join(marks)))
    return aligned(rows)


def replaced(attempts: Sequence[Attempt], expected_score: float | None) -> list[str]:
    """A warning where another submission would take the place of an attempt that has a score, or will have one."""
    if attempts and attempts[-1].is_open:
        return [f"attempt {attempts[-1].attempt} is not scored yet: this file would replace it before it is"]
    scored = [one for one in attempts if one.score is not None]
    if not scored:
        return []
    latest = scored[-1]
    assert latest.score is not None
    if expected_score is not None and expected_score >= latest.score:
        return []
    best = _best(attempts)
    assert best is not None
    facts = f"only the latest counts, and this file would replace attempt {latest.attempt} (score {latest.score:.6g}"
    facts += ", the best so far)" if best is latest else f"; the best was attempt {best.attempt}, {best.score:.6g})"
    if expected_score is None:
        return [f"{facts}; --expected-score S says what you expect of it"]
    return [f"{facts} by one of which you expect {expected_score:.6g}"]


def repeated(known: Sequence[Submission], sha256: str, now: datetime) -> list[str]:
    """Warnings that come of what this machine sent before: too soon, the same bytes, or nobody knows what became."""
    counting = [one for one in known if one.may_count]
    warnings = []
    if counting:
        last = counting[-1]
        if last.time > now:
            warnings.append(
                f"the last submission from here is dated {_local(last.time)}, and it is {_local(now)}: the clock was "
                "set back, so nobody knows whether the 15 minutes are over"
            )
        elif now - last.time < WAIT:
            warnings.append(
                f"the last submission from here was at {_local(last.time)}, and the server takes one in 15 minutes: "
                f"wait until {_local(last.time + WAIT)}"
            )
        if last.outcome == "unknown":
            warnings.append(
                f"nobody knows whether the submission of {_local(last.time)} arrived: see whether it is listed above"
            )
    accepted = [one for one in known if one.outcome == "accepted"]
    if accepted and accepted[-1].sha256 == sha256:
        number = "" if accepted[-1].attempt is None else f", attempt {accepted[-1].attempt}"
        warnings.append(f"these are the bytes of the last submission ({_local(accepted[-1].time)}{number})")
    return warnings


def _looked_up(server: CourseServer, token: Token) -> tuple[list[Attempt] | None, list[str]]:
    try:
        return server.attempts(token), []
    except CourseError as error:
        return None, [f"nobody knows which attempt this file would replace: {error}"]


def _send(
    server: CourseServer, token: Token, file: CheckedFile, history: History, before: list[Attempt] | None
) -> Accepted:
    url, problem = server.address.url, ""
    last = next((one for one in reversed(history.submissions()) if one.may_count), None)
    # Before the first byte: a kill in the middle is known the next time.
    history.begin(file.content)
    try:
        accepted = server.submit(token, file.content)
        history.settle("accepted", accepted.attempt)
        return accepted
    except TooEarly as error:
        history.settle("refused")
        problem = f"{url} {error}; not accepted: {_when(error, last)}"
    except Refused as error:
        history.settle("refused")
        problem = f"{url} {error}; not accepted: see whether --server and the token are right"
    except NoAnswer as error:
        if error.was_sent:
            return _found_again(server, token, history, before, str(error))
        history.forget()
        problem = (
            f"{url} {error}; nothing was sent: see whether --server is right and you are on the network of the course"
        )
    except BadAnswer as error:
        return _found_again(server, token, history, before, str(error))
    except KeyboardInterrupt:
        log.warning("\nwhether it arrived is unknown: run `%s` before you submit again", status_command(server, token))
        raise
    raise CourseError(problem)


def _found_again(
    server: CourseServer, token: Token, history: History, before: list[Attempt] | None, problem: str
) -> Accepted:
    """What the status says of a submission whose answer says nothing; CourseError where it is not there."""
    log.warning("%s %s: it may have arrived all the same; asking once", server.address.url, problem)
    attempts, trouble = _looked_up(server, token)
    known = max((one.attempt for one in before or ()), default=-1)
    if before is not None and attempts and attempts[-1].attempt > known:
        number = attempts[-1].attempt
        history.settle("accepted", number)
        return Accepted("a new attempt is listed, so it arrived", number)
    if trouble:
        seen = "its status cannot be read either"
    elif before is None:
        listed = f"attempt {attempts[-1].attempt}" if attempts else "no attempt"
        seen = f"{listed} is the latest there, and what was before is not known"
    else:
        seen = "no new attempt is listed yet"
    raise CourseError(
        f"{server.address.url} {problem}; whether the file arrived is unknown ({seen}): "
        f"run `{status_command(server, token)}` before you submit again"
    )


def status_command(server: CourseServer, token: Token) -> str:
    """The command line that shows what the server has."""
    return f"softlabel course status --server {shlex.quote(server.address.url)} {token.option}".strip()


def _when(error: TooEarly, last: Submission | None) -> str:
    if error.wait_s is not None:
        after = datetime.now(timezone.utc) + timedelta(seconds=error.wait_s)
        return f"try again after {_local(after)}, as the server says"
    if last is not None and last.time <= datetime.now(timezone.utc) < last.time + WAIT:
        return f"try again after {_local(last.time + WAIT)}, 15 minutes after the last submission from here"
    return "try again 15 minutes after your team's last submission"


def _best(attempts: Sequence[Attempt]) -> Attempt | None:
    return max((one for one in attempts if one.score is not None), key=lambda one: one.score or 0.0, default=None)


def _local(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
