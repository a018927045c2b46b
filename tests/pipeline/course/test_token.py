"""The token: where it comes from, which is none, and that no escape brings it to light."""

from __future__ import annotations

import json
import logging
import os
import sys
import urllib.parse
from html import escape
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.course.address import parse_address
from pipeline.course.server import CourseServer
from pipeline.course.submission import status_command
from pipeline.course.token import Token, find_token
from pipeline.errors import CourseError

from .conftest import SECRET, Cli
from .loopback import CourseService

tokens = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=4, max_size=12)
SPELLINGS = (
    str,
    lambda text: urllib.parse.quote(text, safe=""),
    urllib.parse.quote,
    urllib.parse.quote_plus,
    lambda text: urllib.parse.quote(urllib.parse.quote(text, safe=""), safe=""),
    lambda text: urllib.parse.quote(text, safe="").lower(),
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1].replace("/", "\\/"),
    lambda text: json.dumps(json.dumps(text)[1:-1])[1:-1],
    escape,
    lambda text: escape(text, quote=False),
    lambda text: "".join(f"&#{ord(sign)};" for sign in text),
    lambda text: "".join(f"&#x{ord(sign):X};" for sign in text),
    lambda text: repr(text)[1:-1],
    lambda text: repr(text.encode())[2:-1],
    lambda text: text.encode().decode("latin-1"),
    lambda text: text.encode("ascii", "replace").decode(),
    lambda text: text.encode("ascii", "xmlcharrefreplace").decode(),
    lambda text: text.encode("ascii", "backslashreplace").decode(),
)


@given(st.data(), tokens.filter(lambda text: len(text.strip()) >= 4))
def test_no_escape_brings_a_token_to_light(data: st.DataObject, text: str) -> None:
    """Nor do different escapes of its parts."""
    text = text.strip()
    cut = data.draw(st.integers(0, len(text)))
    first, second = data.draw(st.sampled_from(SPELLINGS)), data.draw(st.sampled_from(SPELLINGS))
    assert Token(text).redact(f"<{first(text[:cut])}{second(text[cut:])}>") == "<***>"


def test_other_text_stays_as_it_is() -> None:
    assert Token("a.b+c").redact("a-b+c aXb+c a.bbc") == "a-b+c aXb+c a.bbc"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the token is empty"),
        (" \n", "the token is empty"),
        ("s3cret\ns3cret", "several lines or control characters"),
        ("s3cret\x1b[0m", "several lines or control characters"),
        ("s3cret\u2028x", "several lines or control characters"),
        ("s3cret\udc80", "several lines or control characters"),
        ("s3cret" * 1000, "that is no token"),
        ("..", "that is no token"),
    ],
)
def test_what_is_no_token_is_refused_without_showing_it(
    text: str, said: str, cli: Cli, service: CourseService, tmp_path: Path
) -> None:
    with pytest.raises(CourseError, match=said):
        Token(text)
    (tmp_path / "token").write_bytes(text.encode("utf-8", "surrogateescape"))
    code, out, err = cli("course", "status", "--token-file", tmp_path / "token")
    assert (code, out, service.asked) == (1, "", [])
    assert said in err or "no text in UTF-8" in err


def test_a_token_shows_itself_to_nobody() -> None:
    assert (repr(Token(SECRET)), f"{Token(SECRET)}", Token(f" {SECRET}\r\n").reveal()) == ("Token(***)",) * 2 + (
        SECRET,
    )


def test_the_file_comes_before_the_variable_and_that_before_the_question(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\ufefffrom file\n", encoding="utf-8")
    found = find_token(tmp_path / "token", "from variable", lambda: "asked")
    assert found.reveal() == "from file"
    assert status_command(CourseServer(parse_address("http://host")), found) == (
        f"softlabel course status --server http://host --token-file {tmp_path / 'token'}"
    )
    assert find_token(None, "from variable", lambda: "asked").reveal() == "from variable"
    assert find_token(None, None, lambda: "asked").reveal() == "asked"
    with pytest.raises(CourseError, match=r"--token-file FILE, or set SOFTLABEL_COURSE_TOKEN; on a terminal it is"):
        find_token(None, None, None)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such modes")
@pytest.mark.parametrize(("mode", "n_lines"), [(0o600, 0), (0o640, 1), (0o604, 1)])
def test_a_file_that_others_can_read_is_said(
    mode: int, n_lines: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "token").write_text(SECRET)
    (tmp_path / "token").chmod(mode)
    find_token(tmp_path / "token", None, None)
    assert [record.message for record in caplog.records] == ["others can read the file of --token-file: chmod 600 it"][
        :n_lines
    ]


@pytest.mark.parametrize("name", ["s3cret", ".", "s3cret\0", "x" * 5000])
def test_the_token_in_place_of_its_file_is_not_repeated(name: str, tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="it takes the name of a file, not a token") as caught:
        find_token(tmp_path / name, None, None)
    assert str(tmp_path) not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"s3cret\xff")
    with pytest.raises(CourseError, match="no text in UTF-8") as caught:
        find_token(tmp_path / "token", None, None)
    assert caught.value.__context__ is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes with names")
def test_a_pipe_will_do(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"from pipe\n")
    os.close(write)
    try:
        assert find_token(Path(f"/dev/fd/{read}"), None, None).reveal() == "from pipe"
    finally:
        os.close(read)


def test_on_a_terminal_it_is_asked_for_and_not_shown(
    cli: Cli, service: CourseService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.score(SECRET, 7.0)
    monkeypatch.delenv("SOFTLABEL_COURSE_TOKEN")
    code, out, err = cli("course", "status")
    assert (code, out) == (1, "")
    assert err.startswith("Error: the token is missing: name a file that holds it with --token-file FILE, or set SOFT")
    asked = []

    def answer(text: str, **settings: bool) -> str:
        asked.append((text, settings))
        return SECRET

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(click, "prompt", answer)
    code, out, _ = cli("course", "status")
    assert (code, "successful" in out) == (0, True)
    assert asked == [("Token of the course server (not shown)", {"hide_input": True, "err": True})]


def test_no_option_takes_the_token_itself(cli: Cli, service: CourseService) -> None:
    for words in (("--token", SECRET), (f"--token={SECRET}",)):
        code, _, err = cli("course", "status", *words)
        assert (code, "--token-file" in err, service.asked) == (2, True, [])


def test_logs_of_the_libraries_are_redacted_only_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    logger, token = logging.getLogger("urllib3.connectionpool"), Token("s3cret/x")
    with token.kept_from_logs():
        logger.debug("GET %s %d", "/s3cret%2fx", 200)
        try:
            raise ValueError("s3cret/x")
        except ValueError:
            logger.exception("failed")
    logger.debug("GET %s", "/other")
    assert caplog.messages == ["GET /*** 200", "failed", "GET /other"]
    assert caplog.records[1].exc_info is None
