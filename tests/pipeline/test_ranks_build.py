"""`cache build` by several ranks: killed, interrupted, resumed by others, it ends in the rows of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache import CacheReader
from pipeline.build import BuildConfig, build_cache

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its ranks")

RowsOf = Callable[[Path], dict[tuple[str, int], bytes]]


@pytest.fixture(scope="module")
def groups(
    tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, dict[str, Any]]]:
    """(folder, case -> exit codes of each attempt, standard output and error of all ranks)."""
    folder = tmp_path_factory.mktemp("ranks")
    bad = folder / "bad"
    bad.mkdir()
    for path in sorted(tiny_data.glob("*/*/*.png")):
        copy = bad / path.relative_to(tiny_data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for path in sorted(bad.glob("train/*/00001.png")):
        path.write_bytes(path.read_bytes()[:100])

    def build(out: str, n: int, data: Path = tiny_data, views: int = 3, **more: Any) -> dict[str, Any]:
        words = [
            "cache", "build", data, "-o", folder / out, "--teacher", tiny_teacher, "--views", views, "--precision",
            "fp32", "--batch-size", 4, "--device", "cpu", "--workers", 0, *more.pop("extra", []),
        ]  # fmt: skip
        return {"n": n, "words": [str(word) for word in words], **more}

    cases = {
        "whole": build("whole.h5", 2),
        "restarted": build("restarted.h5", 2, kill=[1, "pass", 8], restarts=1),
        "killed": build("killed.h5", 2, kill=[0, "pass", 8]),
        "by others": build("killed.h5", 3),
        "left": build("left.h5", 2, kill=[1, "pass", 8]),
        "interrupted": build("interrupted.h5", 2, views=40, interrupt=[1, "pass", 45]),
        "narrow": build("narrow.h5", 2, room=[1, 2]),
        "bad": build("bad.h5", 2, bad),
        "skipped": build("skipped.h5", 2, bad, extra=["--skip-bad-images"]),
        "usage": build("usage.h5", 2, extra=["--yes"]),
        "refused": {"n": 2, "words": ["predict", "student.pt", "image.png"]},
        "too many": build("few.h5", 3, extra=["--max-per-class", "1", "--only", "melanoma,melanocytic nevus"]),
    }  # fmt: skip
    (folder / "cases.json").write_text(json.dumps(list(cases.values())))
    script = Path(__file__).with_name("rank_group.py")
    done = subprocess.run(
        [sys.executable, script, folder / "cases.json", tiny_teacher],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, dict(zip(cases, json.loads(done.stdout), strict=True))


Groups = tuple[Path, dict[str, dict[str, Any]]]


def assert_whole(out: Path, expected: Path, rows_of: RowsOf) -> None:
    assert rows_of(out) == rows_of(expected)
    assert CacheReader(out).content_id == CacheReader(expected).content_id
    assert CacheReader(out).names == CacheReader(expected).names
    assert not out.with_name(f"{out.name}.parts").exists()


@pytest.mark.parametrize("case", ["whole", "restarted", "by others"])
def test_ranks_write_the_file_of_one_process(case: str, groups: Groups, tiny_cache: Path, rows_of: RowsOf) -> None:
    folder, results = groups
    found = results[case]
    assert not any(found["codes"][-1]), found["err"]
    name = {"by others": "killed"}.get(case, case)
    assert_whole(folder / f"{name}.h5", tiny_cache, rows_of)
    assert found["out"].count("120 views of 60 images") == 1, "one rank says what was built"


def test_what_the_ranks_computed_is_counted_over_all_of_them(groups: Groups) -> None:
    _, results = groups
    assert "(120 computed now" in results["whole"]["out"]
    assert results["whole"]["err"].count("60 images, 120 views to compute") == 1


def test_a_rank_that_is_restarted_loses_its_unsealed_block_and_the_others_nothing(groups: Groups) -> None:
    _, results = groups
    found = results["restarted"]
    assert [codes[1] for codes in found["codes"]] == [-9, 0], found["err"]
    computed = int(found["out"].split(" computed now")[0].rsplit("(", 1)[1])
    # Seven passes of four rows had ended, of which up to 15 rows waited for their segment.
    assert 0 < computed <= 120 - (28 - 15 - 3)


def test_one_process_goes_on_where_ranks_were_killed(
    groups: Groups, tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, rows_of: RowsOf
) -> None:
    folder, results = groups
    assert results["left"]["codes"][0][1] == -9
    out = folder / "left.h5"
    assert list((folder / "left.h5.parts").glob("*.h5"))
    assert build_cache(tiny_data, out, tiny_build).n_computed < 120
    assert_whole(out, tiny_cache, rows_of)


def test_ctrl_c_seals_the_rows_of_every_rank_and_one_of_them_says_the_line_that_goes_on(groups: Groups) -> None:
    folder, results = groups
    found = results["interrupted"]
    assert found["codes"] == [[130, 130]], found["err"]
    assert found["err"].count("Go on with:") == 1
    assert "torchrun --nproc-per-node 2 $(which softlabel) cache build" in found["err"]
    assert "Traceback" not in found["err"]
    sealed = [CacheReader(part).n_rows for part in (folder / "interrupted.h5.parts").glob("*.h5")]
    assert 160 <= sum(sealed) < 30 * 40, "whole images of rank 1, and what rank 0 had"
    assert not (folder / "interrupted.h5").exists()


def test_a_batch_that_does_not_fit_into_one_rank_is_halved_for_all(groups: Groups) -> None:
    folder, results = groups
    found = results["narrow"]
    assert found["codes"] == [[0, 0]], found["err"]
    assert found["err"].count("rank 1: 4 views do not fit: going on with --batch-size 2") == 1
    with CacheReader(folder / "narrow.h5") as reader:
        assert reader.n_rows == 120
        assert reader.manifest.provenance["compute"]["rows_per_forward"] == 2


def test_files_that_are_bad_are_listed_once_whichever_rank_found_them(groups: Groups, tiny_cache: Path) -> None:
    folder, results = groups
    found = results["bad"]
    assert all(found["codes"][0]), "no rank goes on"
    assert found["err"].count("Error: 5 of 60 images cannot be decoded; the teacher has not started") == 1
    assert found["err"].count("train/") == 5
    assert "Traceback" not in found["err"]
    assert not (folder / "bad.h5.parts").exists(), "nothing was computed"
    skipped = results["skipped"]
    assert skipped["codes"] == [[0, 0]], skipped["err"]
    assert skipped["err"].count("5 of 60 images cannot be decoded and are left out") == 1
    assert "105 views of 55 images" in skipped["out"]
    with CacheReader(folder / "skipped.h5") as reader:
        assert len(reader.manifest.skipped) == 5


def test_ranks_without_rows_wait_for_the_others(groups: Groups) -> None:
    folder, results = groups
    assert results["too many"]["codes"] == [[0, 0, 0]], results["too many"]["err"]
    assert CacheReader(folder / "few.h5").n_samples == 6


def test_mistakes_of_the_command_line_are_told_once(groups: Groups) -> None:
    _, results = groups
    assert results["usage"]["codes"][0][0] == 2
    assert results["usage"]["err"].count("Error: --yes and --no-publish go with --store URL") == 1
    assert results["refused"]["codes"][0][0] == 2
    assert results["refused"]["err"].count("predict` runs in one process: start it without torchrun") == 1
