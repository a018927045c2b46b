"""How a data set is to be read: ranges, words that say it again, data set files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BadOption, BadSamples, DataError, DataNotFound
from data.options import ScanOptions, comma_list, split_commas
from data.samples import SampleSet
from data.sources.resolve import described

Scan = Callable[..., SampleSet]
Files = Callable[..., Path]
MakeTable = Callable[..., Path]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"folds": 1}, "--folds must be at least 2, got 1"),
        ({"folds": 101}, "--folds must be at most 100, got 101"),
        ({"fold": 2}, "--fold 2 is one of several: say of how many with --folds"),
        ({"folds": 5, "fold": 6}, r"--fold must be in 1\.\.5, got 6"),
        ({"folds": 5, "fold": 0}, "--fold must be at least 1, got 0"),
        ({"folds": 5, "split_column": "s"}, "both split the data"),
        ({"max_per_class": 0}, "--max-per-class must be at least 1, got 0"),
        ({"split_seed": -1}, "--split-seed must be at least 0, got -1"),
        ({"label_columns": ("a",), "one_hot": ("b", "c")}, "both name the labels"),
        ({"one_hot": ("b",)}, "got one alone: b"),
        ({"label_columns": ("a", "a")}, "the column a is named twice"),
        ({"label_columns": ("a",), "image_column": "a"}, "the column a is named twice"),
        ({"only": ("a", " ")}, "--only has an empty name in it"),
    ],
)
def test_a_setting_out_of_range_shows_what_it_got(settings: dict[str, object], said: str) -> None:
    with pytest.raises(BadOption, match=said) as caught:
        ScanOptions(**settings)
    assert isinstance(caught.value, DataError)


def test_words_are_those_of_the_command_line_and_leave_defaults_and_the_machine_out() -> None:
    assert ScanOptions(memo=Path("m"), downloads=Path("d"), remember_split=False).words() == ()
    options = ScanOptions(
        csv=Path("a b.csv"), label_columns=("dx", "a,b"), image_dirs=(Path("p1"), Path("p2")), folds=5, fold=2,
        split_seed=0, allow_group_leaks=True, skip_bad_images=True, only=("mel",),
    )  # fmt: skip
    assert options.words() == (
        "--csv", "a b.csv", "--label-column", 'dx,"a,b"', "--image-dir", "p1", "--image-dir", "p2", "--only", "mel",
        "--split-seed", "0", "--folds", "5", "--fold", "2", "--allow-group-leaks", "--skip-bad-images",
    )  # fmt: skip


NAMES = st.lists(st.text(st.characters(exclude_characters="\r\n\0"), min_size=1).map(str.strip).filter(bool))


@given(names=NAMES)
def test_names_with_commas_between_them_are_the_names_again(names: list[str]) -> None:
    assert split_commas(comma_list(names)) == tuple(names)


@given(only=NAMES, folds=st.none() | st.integers(2, 100), seed=st.none() | st.integers(0, 9), leaks=st.booleans())
def test_the_command_line_reads_its_own_words(
    only: list[str], folds: int | None, seed: int | None, leaks: bool
) -> None:
    import click

    from pipeline.commands.shared import data_options

    @click.command()
    @data_options
    def command(scan: ScanOptions) -> ScanOptions:
        return scan

    options = ScanOptions(only=tuple(only), folds=folds, split_seed=seed, allow_group_leaks=leaks)
    assert command.main(list(options.words()), standalone_mode=False).words() == options.words()


def test_options_load_nothing_heavy() -> None:
    check = "import sys, data.options; sys.exit(str(sorted({'torch', 'numpy', 'yaml', 'sklearn'} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("name", ["label_columns", "one_hot", "image_column", "group_column", "image_dirs"])
def test_a_column_without_a_table_is_refused(name: str, files: Files, scan: Scan) -> None:
    files("a/1.jpg", "b/2.jpg")
    value = {"image_column": "x", "group_column": "x", "image_dirs": (Path("x"),)}.get(name, ("x", "y"))
    with pytest.raises(BadOption, match=r"x.* goes with a table: name it with --csv FILE"):
        scan(**{name: value})


def test_a_file_that_is_no_data_set_and_two_tables_are_told(files: Files, scan: Scan) -> None:
    files("a.jpg", "t.csv")
    with pytest.raises(DataNotFound, match=r"a\.jpg is a file; expected a folder, a table \(\.csv\)"):
        scan("a.jpg")
    files("t.xlsx")
    with pytest.raises(DataNotFound, match=r"t\.xlsx is a spreadsheet: save it as CSV"):
        scan("t.xlsx")
    with pytest.raises(BadOption, match=r"DATA is the table t\.csv, and --csv names another one"):
        scan("t.csv", csv=Path("u.csv"))
    with pytest.raises(DataNotFound, match=r"cannot read t2\.csv"):
        scan("t2.csv", label_columns=("dx",))


@pytest.fixture
def shared(files: Files, table: MakeTable) -> Path:
    """A folder that somebody shares: images, table, data set file."""
    root = files(*(f"set/images/{n}.jpg" for n in range(40)))
    table("image_id,dx,sex,lesion", [f"{n},{'ab'[n % 2]},{'mf'[n // 2 % 2]},{n // 4}" for n in range(40)], "set/t.csv")
    (root / "set" / "ham.yaml").write_text(
        "csv: t.csv\nimage-dir: images\nlabel_column: dx\ngroup_column: lesion\nsplit_seed: 3\n"
    )
    return root / "set" / "ham.yaml"


def test_a_data_set_file_says_it_all_from_wherever_one_stands(
    shared: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scan("set/ham.yaml")
    assert found.classes == {"dx": ("a", "b")}
    assert {sample.group for sample in found.samples} == {str(n) for n in range(10)}
    assert found.words == ("set/ham.yaml",)
    assert Path("set/t.splits-seed-3.csv").is_file()
    monkeypatch.chdir("/")
    assert scan(shared).samples[0].key == found.samples[0].key


def test_flags_win_over_a_data_set_file(shared: Path, scan: Scan) -> None:
    found = scan(shared, label_columns=("sex", "dx"), split_seed=0)
    assert list(found.classes) == ["sex", "dx"]
    assert Path("set/t.splits.csv").is_file()
    assert found.words == (str(shared), "--label-column", "sex,dx", "--split-seed", "0")
    assert described(shared, ScanOptions(one_hot=("x", "y"))).options.label_columns == ()


def test_a_data_set_file_may_name_a_folder(files: Files, scan: Scan) -> None:
    files(*(f"images/{label}/{n}.jpg" for label in ("mel", "nv", "7") for n in range(8)))
    Path("d.yaml").write_text("folder: images\nonly: [mel, 7]\nmax_per_class: 2\n")
    assert scan("d.yaml").classes == {"class": ("7", "mel")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("label_colum: dx\n", r"unknown key 'label_colum'; did you mean 'label_column'\?"),
        ("csv: [1\n", r"is not YAML \(line 2"),
        ("- csv\n", "describes no data set; expected lines such as `csv: metadata.csv`"),
        ("", "describes no data set"),
        ("folds: five\n", "folds: expected a whole number, got 'five'"),
        ("only: [no, mel]\n", "only: expected text, got False: put it in quotes"),
        ("allow_duplicates: 1\n", "allow_duplicates: expected true or false, got 1"),
        ("skip_bad_images: true\n", "'skip_bad_images' is of the command, not of the data"),
        ("label_column: a\nlabel_columns: [b]\n", "'label_columns' is said twice"),
        ("label_column: a\nlabel_column: b\n", "'label_column' is said twice"),
        ("fold: 2\n", "say of how many with --folds"),
    ],
)
def test_a_mistake_in_a_data_set_file_is_told_with_the_file(text: str, said: str, files: Files, scan: Scan) -> None:
    files("x")
    Path("d.yaml").write_text(text)
    with pytest.raises(BadOption, match=said) as caught:
        scan("d.yaml")
    assert str(caught.value).startswith("d.yaml")


def test_a_data_set_file_that_is_not_there_is_told(scan: Scan) -> None:
    with pytest.raises(DataNotFound, match="cannot read the data set file none"):
        scan("none.yaml")


def test_one_class_of_a_task_is_refused_by_name(shared: Path, scan: Scan) -> None:
    text = Path("set/t.csv").read_text().replace(",f,", ",m,")
    Path("set/t.csv").write_text(text)
    with pytest.raises(BadSamples, match=r"one class only in sex \(m\)"):
        scan(shared, label_columns=("dx", "sex"))
