"""Which addresses of a server are usable."""

from __future__ import annotations

import pytest

from pipeline.course.address import notice_of, parse_address
from pipeline.course.token import Token
from pipeline.errors import CourseError

from .conftest import SECRET, Cli


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://Course.example:8000/", "http://course.example:8000"),
        (" https://course.example/api/v1// ", "https://course.example/api/v1"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("HTTP://10.0.0.1", "http://10.0.0.1"),
    ],
)
def test_an_address_is_http_or_https_with_a_path_or_without(text: str, url: str) -> None:
    assert parse_address(text).url == url


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("course.example", "has no scheme: write http://course.example"),
        ("localhost:5000/x", "has no scheme: write http://localhost:5000/x"),
        ("ftp://course.example", "expected http:// or https://, got ftp://"),
        ("file:///etc/passwd", "is no address: expected http://HOST"),
        ("http://", "is no address: expected http://HOST"),
        ("http://host:port", "is no address"),
        ("http://host:0", "is no address"),
        ("http://host:99999", "is no address"),
        ("http://[::1", "is no address"),
        ("http://a host", "is no address"),
        ("http://host\\x", "is no address"),
        ("http://host/\x1b[0m", "is no address"),
        ("http://me:s3cret@host", "without user, password, query or fragment"),
        ("me:s3cret@host", "without user, password, query or fragment"),
        ("http://host/?token=s3cret", "without user, password, query or fragment"),
        ("http://host/#s3cret", "without user, password, query or fragment"),
    ],
)
def test_another_address_is_one_sentence(text: str, said: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = cli("course", "leaderboard", "--server", text)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert said in err
    assert "\x1b" not in err


def test_a_missing_address_is_usage_that_names_the_variable(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOFTLABEL_COURSE_SERVER", raising=False)
    code, _, err = cli("course", "leaderboard")
    assert (code, "Missing option '--server' (env var: 'SOFTLABEL_COURSE_SERVER')" in err) == (2, True)


@pytest.mark.parametrize("end", [SECRET, "s3cret%2Ft%C3%B6ken%26x%20%22%25"])
def test_a_token_in_the_address_is_refused(end: str) -> None:
    address = parse_address(f"http://host/submission-status/{end.replace(' ', '%20').replace('/', '%2f')}")
    with pytest.raises(CourseError, match="the address of --server has the token in it"):
        address.check_without(Token(SECRET))
    address.check_without(Token("another"))
    parse_address("http://host").check_without(Token("host"))


def test_only_plain_http_is_told_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "proxy.example:3128")
    monkeypatch.setenv("no_proxy", "near.example")
    assert notice_of(parse_address("https://host")) == ""
    assert "in the clear to host:8000 and through the proxy proxy.example;" in notice_of(
        parse_address("http://host:8000")
    )
    assert "in the clear to near.example;" in notice_of(parse_address("http://near.example"))
