"""DATA, a cache and a model that stand in each other's place: one line that names the right order."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "CACHE", "DATA"), "is a cache: the order is `softlabel train DATA CACHE`"),
        (("train", "DATA", "TABLE"), "is no cache but describes a data set: the order is `softlabel train DATA CACHE`"),
        (("cache", "probe", "TABLE", "CACHE"), "the order is `softlabel cache probe CACHE DATA`"),
        (("evaluate", "TABLE", "RUN"), "is no student, and {RUN} is one: the order is `softlabel evaluate MODEL DATA`"),
        (("evaluate", "TABLE", "DATA"), "is no student: name a run folder or an exported file before DATA"),
        (("evaluate", "DATA", "RUN"), "the order is `softlabel evaluate MODEL DATA`"),
        (("evaluate", "CACHE", "DATA"), "is a cache, no student"),
        (("evaluate", "RUN", "CACHE"), "is a cache, no folder of images: the order is MODEL DATA"),
    ],
)
def test_words_in_each_others_place_name_the_order(
    words: tuple[str, ...], said: str, cli: Cli, tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path
) -> None:
    table = tmp_path / "data.yaml"
    table.write_text("csv: t.csv\n", encoding="utf-8")
    given = {"DATA": tiny_data, "CACHE": tiny_cache, "TABLE": table, "RUN": tiny_run}
    out = () if words[0] == "evaluate" else ("-o", tmp_path / "out")
    code, printed, err = cli(*(given.get(word, word) for word in words), *out)
    assert (code, printed) == (1, "")
    assert said.format(RUN=tiny_run) in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_a_training_goes_on_with_after_an_interrupt_is_found_without_torch(tmp_path: Path) -> None:
    """Ctrl-C may come while torch is imported, and it cannot be imported a second time."""
    (tmp_path / "seed-3").mkdir()
    (tmp_path / "seed-3" / "last.pt").touch()
    check = (
        "import sys; from pathlib import Path; from pipeline.commands.train import _first_run; "
        "print(_first_run(Path(sys.argv[1])).name, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["seed-3", "False"]
