"""Handing in: what is asked before, that nothing is ever sent twice, and what is known after."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import quote

import click
import pytest

from pipeline.course import exchange
from pipeline.course.history import Submission
from pipeline.course.protocol import Attempt
from pipeline.course.submission import SubmitConfig, repeated, replaced
from pipeline.errors import SettingError

from .conftest import SECRET, Cli
from .loopback import CourseService, Handler
from .misbehaviours import ACCEPTED, ENDLESS, NO_ANSWER, NO_JSON, NO_SUBMISSION, REFUSALS, SHORT, always, drop, hang

pytestmark = pytest.mark.usefixtures("checked_once")
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)


@pytest.fixture
def outcomes(state_folder: Path) -> Callable[[], list[tuple[str, int | None]]]:
    """What this machine remembers of each submission: (outcome, attempt)."""

    def outcomes() -> list[tuple[str, int | None]]:
        known = [json.loads(path.read_bytes())["submissions"] for path in state_folder.glob("*")]
        return [(one["outcome"], one["attempt"]) for submissions in known for one in submissions]

    return outcomes


Outcomes = Callable[[], list[tuple[str, int | None]]]


def arriving(misbehaviour: Callable[[Handler], None]) -> Callable[[Handler], None]:
    """The server takes the file, and then answers so."""

    def take(handler: Handler) -> None:
        handler.read_form()
        handler.server.take(handler.fields["token"].decode(), handler.fields["file"])
        misbehaviour(handler)

    return take


def test_a_file_arrives_whole_and_the_line_says_what_follows(
    cli: Cli, service: CourseService, student_file: Path, outcomes: Outcomes
) -> None:
    code, out, err = cli("course", "submit", student_file)
    assert code == 0, err
    follow = f"`softlabel course status --server {service.url}`"
    assert out == f'{student_file}: accepted as attempt 1 ("Submission received"); its score: {follow}\n'
    assert "MB, runs in torch " in err
    assert "1. class, 10. class, 2. class" in err
    assert "no submission of this token yet" in err
    assert "warning" not in err
    assert service.files == [student_file.read_bytes()]
    assert list(service.attempts) == [SECRET]
    assert outcomes() == [("accepted", 1)]


@pytest.mark.parametrize("name", [*NO_ANSWER, *NO_JSON, *NO_SUBMISSION])
def test_an_answer_that_says_nothing_leaves_the_outcome_open_and_nothing_is_sent_again(
    name: str, cli: Cli, service: CourseService, student_file: Path, outcomes: Outcomes
) -> None:
    service.misbehaviour["submit"], said = {**NO_ANSWER, **NO_JSON, **NO_SUBMISSION}[name]
    code, out, err = cli("course", "submit", student_file, *(SHORT if name in ENDLESS else ()))
    assert (code, out, service.n_posts) == (1, "", 1)
    error = err.strip().splitlines()[-1]
    assert error.startswith(f"Error: {service.url} ")
    assert said.removesuffix(": see") in error
    assert "whether the file arrived is unknown (no new attempt is listed yet)" in error
    assert error.endswith(f"run `softlabel course status --server {service.url}` before you submit again")
    assert [path for _, path, _ in service.asked if "status" in path] == [service.asked[0][1]] * 2
    assert outcomes() == [("unknown", None)]


@pytest.mark.parametrize("name", ["drops the connection", "hangs", "500", "HTML", "redirect"])
def test_a_file_that_arrived_without_an_answer_is_found_by_its_attempt(
    name: str, cli: Cli, service: CourseService, student_file: Path, outcomes: Outcomes
) -> None:
    service.score(SECRET, 7.0)
    misbehaviour, said = {**NO_ANSWER, **NO_JSON}[name]
    service.misbehaviour["submit"] = arriving(misbehaviour)
    code, out, err = cli("course", "submit", student_file, "--yes", *(SHORT if name in ENDLESS else ()))
    assert code == 0, err
    assert said.removesuffix(": see") in err
    assert "it may have arrived all the same; asking once" in err
    assert 'accepted as attempt 2 ("a new attempt is listed, so it arrived")' in out
    assert (service.n_posts, outcomes()) == (1, [("accepted", 2)])


def test_an_attempt_that_was_there_before_is_not_taken_for_the_new_one(
    cli: Cli, service: CourseService, student_file: Path, outcomes: Outcomes
) -> None:
    service.score(SECRET, 7.0)
    service.misbehaviour["submit"] = drop
    code, _, err = cli("course", "submit", student_file, "--yes")
    assert (code, outcomes()) == (1, [("unknown", None)])
    assert "is unknown (no new attempt is listed yet): run" in err


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_one_sentence_with_the_servers_words(
    name: str, cli: Cli, service: CourseService, student_file: Path, outcomes: Outcomes
) -> None:
    service.misbehaviour["submit"], said = REFUSALS[name]
    code, out, err = cli("course", "submit", student_file)
    assert (code, out, service.n_posts, outcomes()) == (1, "", 1, [("refused", None)])
    error = err.strip().splitlines()[-1]
    assert said in error
    assert error.endswith("not accepted: see whether --server and the token are right")
    service.misbehaviour.clear()
    code, _, err = cli("course", "submit", student_file)
    assert (code, "warning" in err) == (0, False)


def test_a_status_that_cannot_be_read_after_leaves_the_outcome_open(
    cli: Cli, service: CourseService, student_file: Path, outcomes: Outcomes
) -> None:
    def both(handler: Handler) -> None:
        service.misbehaviour["status"] = drop
        drop(handler)

    service.misbehaviour["submit"] = both
    code, _, err = cli("course", "submit", student_file)
    assert (code, outcomes()) == (1, [("unknown", None)])
    assert "is unknown (its status cannot be read either): run" in err


def test_a_status_that_cannot_be_read_before_is_a_warning_and_proves_nothing_after(
    cli: Cli, service: CourseService, student_file: Path, outcomes: Outcomes
) -> None:
    service.misbehaviour["status"] = drop
    code, _, err = cli("course", "submit", student_file)
    assert (code, service.n_posts, outcomes()) == (1, 0, [])
    assert f"warning: nobody knows which attempt this file would replace: {service.url} dropped the" in err
    assert err.endswith("Error: nothing was sent, because of the warnings above: --yes sends it all the same\n")

    def dropping(handler: Handler) -> None:
        service.misbehaviour.clear()
        arriving(drop)(handler)

    service.misbehaviour["submit"] = dropping
    code, _, err = cli("course", "submit", student_file, "--yes")
    assert (code, outcomes()) == (1, [("unknown", None)])
    assert "is unknown (attempt 1 is the latest there, and what was before is not known)" in err


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "try again 15 minutes after your team's last submission"),
        ({"Retry_After": "120"}, "try again after 2"),
        ({"Retry_After": format_datetime(datetime.now(timezone.utc) + timedelta(hours=1), usegmt=True)}, ", as the se"),
        ({"Retry_After": "Mon, 99 Foo"}, "15 minutes after your team's"),
        ({"Retry_After": "99999999999999999999"}, "15 minutes after your team's"),
    ],
)
def test_too_early_says_when_to_try_again(
    headers: dict[str, str], said: str, cli: Cli, service: CourseService, student_file: Path, outcomes: Outcomes
) -> None:
    service.misbehaviour["submit"] = always({"error": "Please wait"}, status=429, **headers)
    code, _, err = cli("course", "submit", student_file)
    assert (code, outcomes()) == (1, [("refused", None)])
    assert f'{service.url} takes no submission yet: "Please wait"; not accepted: ' in err
    assert said in err.splitlines()[-1]


def test_too_early_after_a_submission_from_here_says_the_time_by_it(
    cli: Cli, service: CourseService, student_file: Path, outcomes: Outcomes
) -> None:
    assert cli("course", "submit", student_file)[0] == 0
    service.misbehaviour["submit"] = always(b"", None, 429)
    code, _, err = cli("course", "submit", student_file, "--yes")
    assert (code, outcomes()) == (1, [("accepted", 1), ("refused", None)])
    assert "takes no submission yet; not accepted: try again after 2" in err
    assert err.endswith("15 minutes after the last submission from here\n")


def test_a_server_that_is_not_there_got_nothing_and_nothing_is_remembered(
    cli: Cli, service: CourseService, student_file: Path, outcomes: Outcomes
) -> None:
    code, _, err = cli("course", "submit", student_file, "--server", "http://127.0.0.1:9", "--yes")
    assert (code, outcomes()) == (1, [])
    assert "takes no connection (Connection refused); nothing was sent: see whether --server is right" in err


def test_a_token_in_the_address_is_neither_shown_nor_remembered(
    cli: Cli, service: CourseService, student_file: Path, outcomes: Outcomes
) -> None:
    url = f"{service.url}/submission-status/{quote(SECRET, safe='')}"
    code, out, err = cli("course", "submit", student_file, "--server", url, "--yes")
    assert (code, out, service.asked, outcomes()) == (1, "", [], [])
    assert err.endswith("Error: the address of --server has the token in it: leave out what comes after the host\n")


def test_the_second_submission_is_asked_about_and_sent_with_yes(
    cli: Cli, service: CourseService, student_file: Path, outcomes: Outcomes
) -> None:
    assert cli("course", "submit", student_file)[0] == 0
    code, _, err = cli("course", "submit", student_file)
    assert (code, service.n_posts) == (1, 1)
    for said in (
        "attempt 1 is not scored yet",
        "the server takes one in 15 minutes: wait until",
        "these are the bytes",
    ):
        assert f"warning: {said}" in err or said in err
    assert err.count("warning: ") == 3
    assert cli("course", "submit", student_file, "--yes")[0] == 0
    assert (service.n_posts, outcomes()) == (2, [("accepted", 1), ("accepted", 2)])


@pytest.mark.parametrize(("answer", "code", "n_posts"), [(True, 0, 1), (False, 1, 0)])
def test_on_a_terminal_warnings_are_a_question(
    answer: bool, code: int, n_posts: int, cli: Cli, service: CourseService, student_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    service.score(SECRET, 7.0)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(click, "confirm", lambda *words, **settings: answer)
    found, _, err = cli("course", "submit", student_file)
    assert (found, service.n_posts) == (code, n_posts)
    assert err.endswith("Error: nothing was sent\n") != answer


def test_a_dry_run_checks_shows_and_sends_nothing(
    cli: Cli, service: CourseService, student_file: Path, outcomes: Outcomes
) -> None:
    service.score(SECRET, 7.25)
    code, out, err = cli("course", "submit", student_file, "--dry-run")
    assert (code, service.n_posts, outcomes()) == (0, 0, [])
    assert out == f"{student_file}: would be sent to {service.url}; nothing was sent\n"
    assert "latest: counts" in err
    assert "would replace attempt 1 (score 7.25, the best so far); --expected-score S says" in err


def test_ctrl_c_in_an_upload_says_that_nobody_knows_and_the_next_time_remembers(
    cli: Cli, service: CourseService, student_file: Path, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(begun_s: float, form: exchange.Form | None, limits: exchange.Limits) -> float:
        if form is not None and form.ended_s is not None:
            raise KeyboardInterrupt
        return deadline(begun_s, form, limits)

    deadline = exchange._deadline_s
    monkeypatch.setattr(exchange, "_deadline_s", interrupted)
    service.misbehaviour["submit"] = hang
    code, out, err = cli("course", "submit", student_file)
    assert (code, out, outcomes()) == (130, "", [("unknown", None)])
    assert f"whether it arrived is unknown: run `softlabel course status --server {service.url}` before you" in err
    service.misbehaviour.clear()
    monkeypatch.setattr(exchange, "_deadline_s", deadline)
    code, _, err = cli("course", "submit", student_file)
    assert (code, service.n_posts) == (1, 1)
    assert "warning: nobody knows whether the submission of 2" in err


def test_a_submission_is_remembered_before_its_first_byte(
    cli: Cli, service: CourseService, student_file: Path, outcomes: Outcomes
) -> None:
    known = []

    def note(handler: Handler) -> None:
        known.extend(outcomes())
        always(ACCEPTED)(handler)

    service.misbehaviour["submit"] = note
    assert cli("course", "submit", student_file)[0] == 0
    assert (known, outcomes()) == ([("unknown", None)], [("accepted", 1)])


def test_an_upload_that_stands_still_ends(
    cli: Cli, service: CourseService, student_file: Path, monkeypatch: pytest.MonkeyPatch, outcomes: Outcomes
) -> None:
    """As it is sent in pieces, the time is over before the form is."""
    monkeypatch.setattr(exchange, "_SLOWEST_UPLOAD", 10**9)
    monkeypatch.setattr(exchange.Form, "read", _slowly(exchange.Form.read))
    code, _, err = cli("course", "submit", student_file, *SHORT)
    assert (code, service.n_posts, outcomes()) == (1, 1, [("unknown", None)])
    assert "kB/s of the upload; whether the file arrived is unknown" in err


def _slowly(read: Callable[[exchange.Form, int], bytes]) -> Callable[[exchange.Form, int], bytes]:
    from time import sleep

    def read_slowly(form: exchange.Form, size: int = -1) -> bytes:
        sleep(0.2)
        return read(form, 1000)

    return read_slowly


def attempt(number: int, score: float | None, status: str = "successful") -> Attempt:
    return Attempt(attempt=number, score=score, model_size=1.0, status=status)


@pytest.mark.parametrize(
    ("attempts", "expected", "said"),
    [
        ([], None, None),
        ([attempt(1, None, "failed")], None, None),
        ([attempt(1, None, "pending")], None, "attempt 1 is not scored yet"),
        ([attempt(1, 7.0), attempt(2, None, "pending")], 9.0, "attempt 2 is not scored yet"),
        ([attempt(1, 7.0)], None, "attempt 1 (score 7, the best so far); --expected-score"),
        ([attempt(1, 7.5), attempt(2, 7.0)], None, "attempt 2 (score 7; the best was attempt 1, 7.5); --expected"),
        ([attempt(1, 7.5), attempt(2, 7.0)], 7.0, None),
        ([attempt(1, 7.5), attempt(2, 7.0)], 6.99, "attempt 1, 7.5) by one of which you expect 6.99"),
        ([attempt(1, 7.0), attempt(2, None, "failed")], 6.0, "would replace attempt 1 (score 7, the best so far)"),
        ([attempt(1, -1.0)], -2.0, "attempt 1 (score -1, the best so far)"),
    ],
)
def test_a_better_attempt_is_not_replaced_unasked(
    attempts: list[Attempt], expected: float | None, said: str | None
) -> None:
    warnings = replaced(attempts, expected)
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]


def sent(minutes_ago: float, outcome: str = "accepted", sha256: str = "a") -> Submission:
    time = NOW - timedelta(minutes=minutes_ago)
    return Submission(time_utc=time.isoformat(), sha256=sha256, n_bytes=3, outcome=outcome)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ([], []),
        ([sent(15)], []),
        ([sent(14.9)], ["the server takes one in 15 minutes: wait until"]),
        ([sent(3, "refused")], []),
        ([sent(20), sent(3, "refused")], []),
        ([sent(5), sent(3, "refused")], ["takes one in 15 minutes"]),
        ([sent(60, "unknown")], ["nobody knows whether the submission of"]),
        ([sent(3, "unknown")], ["takes one in 15 minutes", "nobody knows whether the submission of"]),
        ([sent(-1)], ["the clock was set back"]),
        ([sent(-99), sent(20)], []),
        ([sent(20, sha256="b")], ["these are the bytes of the last submission"]),
        ([sent(40, sha256="b"), sent(20)], []),
        ([sent(20, "refused", sha256="b")], []),
    ],
)
def test_what_was_sent_before_speaks_against_sending(known: list[Submission], said: list[str]) -> None:
    warnings = repeated(known, "b", NOW)
    assert len(warnings) == len(said)
    assert all(words in warning for words, warning in zip(said, warnings, strict=True))


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_an_expected_score_is_a_number(score: float, cli: Cli, service: CourseService, student_file: Path) -> None:
    with pytest.raises(SettingError, match="expected_score must be a finite number, got"):
        SubmitConfig(expected_score=score)
    code, _, err = cli("course", "submit", student_file, "--expected-score", score)
    assert (code, err.startswith("Error: expected_score must be")) == (1, True)


def test_the_defaults_of_the_command_line_are_those_of_the_settings() -> None:
    from pipeline.commands.course import course_submit

    parsed = course_submit.make_context("softlabel", ["FILE", "--server", "http://x"]).params
    settings = {**dataclasses.asdict(SubmitConfig()), **dataclasses.asdict(exchange.Limits())}
    assert settings == {name: parsed[name] for name in settings}
