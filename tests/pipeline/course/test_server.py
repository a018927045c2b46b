"""Asking the server: whatever it does instead of its protocol is one sentence, and nothing is shown of the token."""

from __future__ import annotations

import html
import json
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from pipeline.course.exchange import Limits
from pipeline.errors import SettingError

from .conftest import SECRET, Cli
from .loopback import CourseService
from .misbehaviours import (
    ENDLESS,
    FINE,
    HTML,
    NO_ANSWER,
    NO_JSON,
    NO_PAGE,
    NO_STATUS,
    SHORT,
    Misbehaviour,
    always,
    echo,
)


def is_one_sentence(err: str, service: CourseService, said: str) -> bool:
    """One error, that names the server and what it did and ends with what to do."""
    line = err.strip().splitlines()[-1]
    return line.startswith(f"Error: {service.url} ") and said in line and "--server is" in line


@pytest.mark.parametrize("name", [*NO_ANSWER, *NO_JSON, *NO_STATUS])
def test_a_status_by_no_protocol_is_one_sentence(name: str, cli: Cli, service: CourseService) -> None:
    service.misbehaviour["status"], said = {**NO_ANSWER, **NO_JSON, **NO_STATUS}[name]
    code, out, err = cli("course", "status", *(SHORT if name in ENDLESS else ()))
    assert (code, out) == (1, "")
    assert is_one_sentence(err, service, said), err
    assert err.count("\n") == 2  # that, and the line about plain http


@pytest.mark.parametrize("name", NO_PAGE)
def test_a_leaderboard_that_is_none_is_one_sentence(name: str, cli: Cli, service: CourseService) -> None:
    service.misbehaviour["leaderboard"], said = NO_PAGE[name]
    code, out, err = cli("course", "leaderboard", *(SHORT if name in ENDLESS else ()))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert is_one_sentence(err, service, said), err


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:CLOSED", "takes no connection (Connection refused): see"),
        ("https://127.0.0.1:OPEN", "offers no TLS connection that this machine trusts"),
        ("http://course.invalid", "has a name that this network does not know: see"),
        (f"http://{'x' * 70}.invalid", "has an address that cannot be"),
    ],
)
def test_a_server_that_is_out_of_reach_is_one_sentence(url: str, said: str, cli: Cli, service: CourseService) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = url.replace("CLOSED", str(closed.getsockname()[1])).replace("OPEN", service.url.rpartition(":")[2])
        code, out, err = cli("course", "status", "--server", url)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"Error: {url} {said}"), err


@pytest.mark.parametrize(
    ("misbehaviour", "said"),
    [
        (echo("text/plain"), "something that is no JSON"),
        (echo("application/json", 400, lambda token: json.dumps({"error": f"no such token: {token}"})), "token: ***"),
        (echo("application/json", 500, lambda token: json.dumps({"error": html.escape(token)})), '"***"'),
        (echo("application/json", 200, lambda token: json.dumps([{**FINE[0], "status": token}])), ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("words", [(), ("--debug",)])
def test_a_server_that_repeats_the_token_shows_it_to_nobody(
    words: tuple[str, ...], misbehaviour: Misbehaviour, said: str, cli: Cli, service: CourseService, seen: list[str]
) -> None:
    """What is seen, logged and raised is searched after every test of this folder."""
    service.score(SECRET, 1.0)
    service.misbehaviour["status"] = misbehaviour
    if not words:
        code, out, err = cli("course", "status")
        assert (code, said in err, "***" in out) == (1 if said else 0, True, not said)
    elif said:
        with pytest.raises(ValueError, match="try again later") as caught:
            cli(*words, "course", "status")
        assert caught.value.__context__ is None or "answered" in str(caught.value.__context__)


@pytest.mark.parametrize("header", ["Content-Type", "Location", "Retry-After", "Server"])
@pytest.mark.parametrize("status", [200, 302, 429, 500])
def test_a_token_in_the_header_of_an_answer_is_not_shown(
    header: str, status: int, cli: Cli, service: CourseService
) -> None:
    headers = {"Content-Type": "x/y", header: f"http://{quote(SECRET, safe='')}/x"}
    service.misbehaviour["status"] = always(FINE, None, status, **headers)
    code, out, err = cli("course", "status")
    assert (code, out) == (1, "")
    assert ("***" in err) == ((header, status) in (("Content-Type", 200), ("Location", 302)))


def test_the_first_request_of_a_process_is_logged_without_the_token(service: CourseService) -> None:
    """The loggers of the libraries are made when these are loaded."""
    service.score(SECRET, 1.0)
    program = (
        "import logging, os; logging.basicConfig(level=logging.DEBUG)\n"
        "from pipeline.course.address import parse_address\n"
        "from pipeline.course.server import CourseServer\n"
        "from pipeline.course.token import Token\n"
        "server = CourseServer(parse_address(os.environ['SOFTLABEL_COURSE_SERVER']))\n"
        "print(server.attempts(Token(os.environ['SOFTLABEL_COURSE_TOKEN'])))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "GET /submission-status/***" in done.stderr
    assert "s3cret" not in done.stderr + done.stdout


def test_the_log_of_the_libraries_says_what_was_asked_without_the_token(
    cli: Cli, service: CourseService, caplog: pytest.LogCaptureFixture
) -> None:
    service.score(SECRET, 1.0)
    assert cli("course", "status")[0] == 0
    requests = [text for text in caplog.messages if "GET" in text]
    assert len(requests) == 1
    assert "/submission-status/***" in requests[0]


def test_the_attempts_are_a_table_with_the_best_and_the_latest(cli: Cli, service: CourseService) -> None:
    service.score(SECRET, 7.25, 7.1, None, last="pending")
    code, out, err = cli("course", "status")
    assert code == 0
    assert out.splitlines() == [
        "attempt  status      score  model size",
        "      1  successful   7.25         1.5  best",
        "      2  successful    7.1         1.5",
        "      3  pending         -         1.5  latest: counts",
    ]
    host = service.url.removeprefix("http://")
    assert err == f"plain http: your token travels in the clear to {host}; whoever is on the way can read it\n"
    assert json.loads(cli("course", "status", "--json")[1]) == service.attempts[SECRET]


def test_a_token_without_attempts_is_no_error(cli: Cli, service: CourseService) -> None:
    assert cli("course", "status")[:2] == (0, "no submission of this token yet\n")
    assert json.loads(cli("course", "status", "--json")[1]) == []
    service.misbehaviour["status"] = always([])
    assert cli("course", "status")[:2] == (0, "no submission of this token yet\n")


@pytest.mark.parametrize("kind", [None, "text/plain", "application/problem+json", "APPLICATION/JSON; charset=utf-8"])
def test_json_under_another_media_type_is_read(kind: str | None, cli: Cli, service: CourseService) -> None:
    service.misbehaviour["status"] = always(FINE, kind)
    assert json.loads(cli("course", "status", "--json")[1]) == FINE


def test_the_token_arrives_as_it_is_and_a_path_of_the_server_is_kept(cli: Cli, service: CourseService) -> None:
    service.prefix = "/course/api"
    service.score(SECRET, 7.0)
    assert cli("course", "status", "--server", f"{service.url}/")[0] == 0
    (asked,) = service.asked
    assert asked[1] == "/course/api/submission-status/s3cret%2Ft%C3%B6ken%26x%20%22%25"


def test_a_redirect_is_not_followed_with_the_token(cli: Cli, service: CourseService) -> None:
    with CourseService() as other:
        service.misbehaviour["status"] = always(b"", None, 307, Location=f"{other.url}/submission-status/x")
        assert cli("course", "status")[0] == 1
        assert (len(service.asked), other.asked) == (1, [])


def test_the_leaderboard_needs_no_token_and_sends_none(
    cli: Cli, service: CourseService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOFTLABEL_COURSE_TOKEN")
    code, out, err = cli("course", "leaderboard")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "Rank  Team              F1  Size (MB)",
        "   1  Ärzte <3       0.712        1.4",
        "   2  nevus\\x1b[31m   0.70       24.9",
    ]
    found = json.loads(cli("course", "leaderboard", "--json")[1])
    assert found[0] == {"Rank": "1", "Team": "Ärzte <3", "F1": "0.712", "Size (MB)": "1.4"}


def test_a_proxy_of_the_environment_is_used_and_named(
    cli: Cli, service: CourseService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loopback server stands in for the proxy, which is asked for the whole address."""
    monkeypatch.setenv("http_proxy", service.url.replace("http://", "http://me:pw@"))
    service.misbehaviour["status"] = always(HTML, "text/html", 407)
    code, _, err = cli("course", "status", "--server", "http://course.invalid")
    assert (code, "(the proxy on the way wants a password)" in err) == (1, True)
    assert "in the clear to course.invalid and through the proxy 127.0.0.1; whoever" in err
    assert "pw" not in err
    assert len(service.asked) == 1
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert "cannot be reached through the proxy of the environment" in cli("course", "leaderboard")[2]


def test_no_password_of_a_netrc_is_sent(
    cli: Cli, service: CourseService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert cli("course", "status")[0] == 0
    assert "Authorization" not in service.asked[0][2]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), 1e9])
def test_a_timeout_is_some_time(value: float) -> None:
    with pytest.raises(SettingError, match=r"timeout_s must be above 0 .* got"):
        Limits(timeout_s=value)
