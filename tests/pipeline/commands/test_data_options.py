"""DATA on the command line: tables, data set files, k-fold and subsets, the same for every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cache import CacheReader

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def isic(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny images in two folders that name no class and no split: one-hot table, lesions, data set file."""
    root = tmp_path_factory.mktemp("isic")
    images = sorted(tiny_data.glob("*/*/*.png"))
    classes = sorted({path.parent.name for path in images})
    rows, lesions = [], []
    for number, path in enumerate(images):
        place = root / f"part_{number % 2}" / f"ISIC_{number:04}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(path.read_bytes())
        rows.append(",".join([place.stem, *("1.0" if path.parent.name == name else "0.0" for name in classes)]))
        lesions.append(f"{place.stem},{path.parent.name},L{number // 2},{number % 6}")
    (root / "truth.csv").write_text("\n".join([",".join(["image", *classes]), *rows]))
    (root / "lesions.csv").write_text("\n".join(["image,dx,lesion,site", *lesions]))
    (root / "isic.yaml").write_text("csv: truth.csv\nimage_dirs: [part_0, part_1]\nsplit_file: s.csv\n")
    return root


@pytest.fixture(scope="module")
def isic_cache(isic: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of all of it, with every view of every image."""
    from pipeline.cli import run

    out = tmp_path_factory.mktemp("cache") / "t.h5"
    words = ["cache", "build", isic / "truth.csv", "--folds", "3", "-o", out]
    words += ["--teacher", tiny_teacher, "--views", "2", "--precision", "fp32", "--workers", "0"]
    assert run([str(word) for word in words]) == 0
    return out


def test_one_cache_serves_every_fold(cli: Cli, isic: Path, isic_cache: Path, tmp_path: Path) -> None:
    with CacheReader(isic_cache) as reader:
        assert (reader.n_samples, reader.n_rows) == (60, 120)
    assert (isic / "truth.folds-3.csv").is_file()
    data = (isic / "truth.csv", "--folds", 3, "--fold", 2)
    code, _, err = cli(
        "train", data[0], isic_cache, *data[1:], "-o", tmp_path / "run", "--student", "shufflenet_v2_x0_5",
        "--student-size", 32, "--epochs", 1, "--batch-size", 8, "--workers", 0, "--anyway", "--no-report",
    )  # fmt: skip
    assert code == 0, err
    by_lesion = ("--csv", isic / "lesions.csv", "--group-column", "lesion")
    code, out, err = cli("evaluate", tmp_path / "run", *data, *by_lesion, "--split", "test", "--json", "-")
    assert code == 0, err
    found = json.loads(out)["splits"]["test"]
    assert (found["student"]["n_samples"], found["unit"]) == (20, "lesion")


def test_a_data_set_file_and_the_table_of_a_command_are_read_alike(
    cli: Cli, isic: Path, isic_cache: Path, tmp_path: Path
) -> None:
    code, out, err = cli("cache", "info", isic_cache, "--data", isic / "isic.yaml", "--only", "melanoma,seborrhoea")
    assert (code, out) == (1, "")
    assert "no class is called 'seborrhoea'" in err
    probe = ("cache", "probe", isic_cache, isic / "lesions.csv", "--label-column", "dx", "--cross-fit", "site")
    code, out, err = cli(*probe, "--folds", 2, "-o", tmp_path / "p.h5")
    assert code == 0, err
    assert "3 linear heads" in out


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        ("cache build lesions.csv -o t.h5", "which column has the labels? Name it with --label-column", 1),
        ("cache build . -o t.h5 --label-column dx", "--label-column dx goes with a table: name it with --csv FILE", 1),
        ("cache build . --csv lesions.csv --label-column dy -o t.h5", "has no column dy; it has image, dx", 1),
        ("cache build lesions.csv --label-column dx --label-column dx -o t.h5", "the column dx is named twice", 1),
        ("cache build lesions.csv --label-column dx, -o t.h5", "expected names with commas between them", 2),
        ("cache build lesions.csv --label-column dx --fold 2 -o t.h5", "say of how many with --folds", 1),
        ("cache build lesions.csv --label-column dx --folds 1 -o t.h5", "1 is not in the range 2<=x<=100", 2),
        ("cache build truth.csv --only melanome -o t.h5", "did you mean 'melanoma'?", 1),
        ("cache build none.yaml -o t.h5", "cannot read the data set file none.yaml", 1),
        ("cache build torchvision:CIFAR11 -o t.h5", "did you mean 'CIFAR10'?", 1),
        ("cache info CACHE --folds 5", "go with --data DATA", 2),
        ("cache probe CACHE . --group-column lesion -o p.h5", "--group-column lesion goes with a table", 1),
        (
            "evaluate RUN lesions.csv --split-column site",
            "has the splits 0, 1, 2, 3, 4, 5; expected train, training",
            1,
        ),
        ("evaluate RUN . --csv lesions.csv", "which column has the labels?", 1),
        ("evaluate RUN none.yaml --group-column lesion", "cannot read the data set file none.yaml", 1),
    ],
)
def test_a_mistake_is_one_message_and_writes_nothing(
    words: str, said: str, code: int, cli: Cli, isic: Path, isic_cache: Path, tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(isic)
    before = sorted(isic.rglob("*"))
    given = {"CACHE": isic_cache, "RUN": tiny_run}
    found = cli(*(given.get(word, word) for word in words.split()))
    assert found[:2] == (code, ""), found[2]
    assert said in found[2]
    assert "Traceback" not in found[2]
    assert sorted(isic.rglob("*")) == before
