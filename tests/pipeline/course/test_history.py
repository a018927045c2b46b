"""What this machine remembers of its submissions."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pipeline.course.history import History


def test_a_submission_is_unknown_until_it_is_settled(tmp_path: Path) -> None:
    history = History(tmp_path / "new" / "course", "http://a")
    assert history.submissions() == []
    history.begin(b"abc")
    (known,) = History(tmp_path / "new" / "course", "http://a").submissions()
    assert (known.outcome, known.attempt, known.n_bytes, known.may_count) == ("unknown", None, 3, True)
    assert known.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    history.settle("accepted", 7)
    history.begin(b"abc")
    history.settle("refused")
    history.begin(b"xyz")
    history.forget()
    known_all = history.submissions()
    assert [(one.outcome, one.attempt, one.may_count) for one in known_all] == [
        ("accepted", 7, True), ("refused", None, False),
    ]  # fmt: skip
    assert json.loads(history.path.read_bytes())["server"] == "http://a"


def test_each_server_has_a_file_of_its_own(tmp_path: Path) -> None:
    History(tmp_path, "http://a").begin(b"abc")
    assert History(tmp_path, "http://a:80").submissions() == []


def test_only_the_last_hundred_are_kept(tmp_path: Path) -> None:
    history = History(tmp_path, "http://a")
    history.begin(b"a")
    entry = json.loads(history.path.read_bytes())["submissions"][0]
    history.path.write_text(json.dumps({"submissions": [entry] * 150}))
    history.begin(b"abc")
    assert [one.n_bytes for one in history.submissions()] == [1] * 99 + [3]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff", b'{"submissions": 3}', b'{"submissions": [3]}', b'{"submissions": [{}]}',
        b"[" * 100_000,
        b'{"submissions": [{"time_utc": "yesterday", "sha256": "a", "n_bytes": 1}]}',
        b'{"submissions": [{"time_utc": "2026-01-01T00:00:00", "sha256": "a", "n_bytes": 1}]}',
        b'{"submissions": [{"time_utc": "2026-01-01T00:00:00+00:00", "sha256": "a", "n_bytes": 1, "outcome": "?"}]}',
        b'{"submissions": [{"time_utc": "2026-01-01T00:00:00+00:00", "sha256": "a", "n_bytes": 1, "attempt": "x"}]}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_said_and_started_anew(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    history = History(tmp_path, "http://a")
    history.path.write_bytes(content)
    history.begin(b"abc")
    assert [one.n_bytes for one in history.submissions()] == [3]
    assert caplog.messages == [f"{history.path} cannot be read: what was handed in before is forgotten"]


def test_a_full_disk_or_a_file_in_the_way_is_said_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    history = History(tmp_path, "http://a")
    history.begin(b"abc")
    before = history.path.read_bytes()
    with file_limit(10):
        history.settle("accepted", 1)
    assert history.path.read_bytes() == before
    (tmp_path / "file").write_text("x")
    History(tmp_path / "file", "http://a").begin(b"abc")
    told = [message for message in caplog.messages if message.startswith("this submission is not remembered for the")]
    assert len(told) == 2
