"""The campaign of hostile files in small, and what it says of a reader that is off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache import CacheReader

FILES, IN_A_CHILD = 200, 5


def test_every_hostile_file_is_refused_in_a_line_or_harmless(tmp_path: Path, load_script: Callable[[str], Any]) -> None:
    hostile_files = load_script("hostile_files")
    for reader, files in (("guard", FILES), ("child", IN_A_CHILD)):
        folder = tmp_path / reader
        folder.mkdir()
        found = hostile_files.campaign(folder, files, 0, seed=1, reader=reader)
        counts = found.report.line(found.report.rows)
        assert found.report.details == []
        assert counts["files"] == files == sum(counts.values()) - files
        assert counts["refused"] > files / 3
        assert 0 < found.slowest_s < hostile_files.HANG_S
    assert set(hostile_files.KINDS) == {"bytes", "metadata", "storage", "content", "manifest"}


def test_the_same_number_is_the_same_file(tmp_path: Path, load_script: Callable[[str], Any]) -> None:
    maker = load_script("hostile_files").Maker(tmp_path, 3)
    kinds = {maker.kind(number) for number in range(40)}
    assert len(kinds) >= 4
    for number in [number for number in range(40) if maker.kind(number) in ("bytes", "metadata")][:10]:
        maker.make(number, tmp_path / "a.h5")
        maker.make(number, tmp_path / "b.h5")
        assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_changed_metadata_have_checksums_that_fit(tmp_path: Path, load_script: Callable[[str], Any]) -> None:
    script, checksums = load_script("hostile_files"), load_script("reliability.mended_metadata")
    one = load_script("reliability.mutants").sound(script.original(tmp_path / "t.h5"))
    assert len(one.blocks) == one.content.count(b"OHDR") + one.content.count(b"OCHK") + 1
    content = bytearray(one.content)
    for start, stop in one.blocks:
        content[stop - 1] ^= 1
        checksums.mend(content, (start, stop))
    assert bytes(content) != one.content
    assert checksums.checked_blocks(bytes(content)) == one.blocks


def off(how: str, path: Path) -> Any:
    """A reader that does what no reader may."""
    if path.stat().st_size % 3:
        return "refused", ""
    return {"crash": lambda: __import__("os")._exit(3), "hang": lambda: __import__("time").sleep(60)}[how]()


@pytest.mark.parametrize(("how", "column"), [("crash", "crashes"), ("hang", "hangs")])
def test_the_campaign_counts_a_reader_that_would(
    how: str, column: str, tmp_path: Path, load_script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script("hostile_files")
    monkeypatch.setitem(script.READERS, how, lambda path, known: off(how, path))
    monkeypatch.setattr(script, "HANG_S", 0.1)
    found = script.campaign(tmp_path, 6, 0, seed=0, reader=how)
    counts = found.report.line(found.report.rows)
    assert counts[column] > 0
    assert counts["refused"] > 0
    assert counts[column] + counts["refused"] == 6
    assert len(found.report.details) == counts[column]


def test_the_campaign_counts_a_reader_that_checks_no_seal(
    tmp_path: Path, load_script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class EqualToAll:
        def __ne__(self, other: object) -> bool:
            return False

    script = load_script("hostile_files")
    maker = script.Maker(tmp_path, 0)
    path = tmp_path / "t.h5"
    content = bytearray((tmp_path / "ours.h5").read_bytes())
    at = content.index(CacheReader(tmp_path / "ours.h5").keys.tobytes())
    content[at + 15] ^= 1
    path.write_bytes(content)
    assert script.in_process(path, maker.contents)[0] == "refused"
    monkeypatch.setattr("cache.guard.seal_of", lambda specs, bytes_of: EqualToAll())
    assert script.in_process(path, maker.contents)[0] == "wrong"


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--files", "-1"], "expected 1 or more"), (["--folder", "."], "choose another --folder"), (["--with", "x"], "x")],
)
def test_the_campaign_refuses(words: list[str], message: str, refusal: Callable[..., str]) -> None:
    assert message in refusal("hostile_files", words)
