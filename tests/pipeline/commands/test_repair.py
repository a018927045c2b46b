"""`softlabel cache probe` and `rehead`: what they say, what they refuse, and what they leave behind."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cache import CacheReader
from pipeline.repair import logistic

Cli = Callable[..., tuple[int, str, str]]
Resealed = Callable[..., Path]
NEVUS = "melanocytic nevus"


@pytest.fixture(autouse=True)
def _few_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "C_GRID", (1e-4, 1e-2))


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the images, to be changed."""
    return shutil.copytree(tiny_data, tmp_path / "images")


def one_error(result: tuple[int, str, str]) -> str:
    """The message of a command that ended with exit code 1."""
    code, _, err = result
    assert code == 1, err
    assert "Traceback" not in err
    assert err.count("Error: ") == 1
    return err[err.index("Error: ") :].strip()


def test_probe_says_one_line_and_a_table(cli: Cli, tiny_cache: Path, tiny_data: Path, tmp_path: Path) -> None:
    code, out, err = cli("cache", "probe", tiny_cache, tiny_data, "-o", tmp_path / "p.h5")
    assert code == 0, err
    line, title, val = out.splitlines()
    assert re.search(r"p\.h5: 120 views of 60 images, 1 linear head on 32 features, C 0\.0\d+, [\d.]+ s", line), line
    assert title.split() == ["accuracy", "/", "macro", "F1", "images", "before", "now"]
    assert re.fullmatch(r"val +15 +0\.\d{3} / 0\.\d{3} +0\.\d{3} / 0\.\d{3}", val), val
    assert "overconfident: --cross-fit image labels each by a head that has not seen it" in err
    assert cli("cache", "verify", tmp_path / "p.h5")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5"]


def test_a_cross_fitted_probe_says_how_good_it_is_out_of_fold(
    cli: Cli, tiny_cache: Path, tiny_data: Path, tmp_path: Path
) -> None:
    words = ("--cross-fit", "image", "--folds", 3, "--calibrate")
    code, out, err = cli("cache", "probe", tiny_cache, tiny_data, "-o", tmp_path / "p.h5", *words)
    assert code == 0, err
    assert re.search(r"4 linear heads on 32 features, C 0\.0\d+, T [\d.]+, ", out)
    assert re.search(r"^train, out of fold +30 ", out, re.MULTILINE)
    assert re.search(r"temperature \S+ on 15 val images: NLL [\d.]+ -> [\d.]+ nats", err)


def test_rehead_says_one_line_and_with_data_a_table(
    cli: Cli, tiny_cache: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    words = ("cache", "rehead", tiny_cache, "--teacher", tiny_teacher, "--template", "a photo of {}")
    code, out, err = cli(*words, "-o", tmp_path / "one.h5")
    assert code == 0, err
    assert re.fullmatch(r".*one\.h5: 120 views of 60 images with new prompts, [\d.]+ s\n", out), out
    assert "prompt  melanoma: a photo of melanoma" in err
    code, out, err = cli(*words, "-o", tmp_path / "two.h5", "--data", tiny_data, "--calibrate", "--no-embedding")
    assert code == 0, err
    assert re.search(r"with new prompts, T [\d.]+, [\d.]+ s\naccuracy / macro F1 .*\nval +15 ", out), out
    assert re.search(r"temperature [\d.]+ on 15 val images: NLL [\d.]+ -> [\d.]+ nats", err)
    assert CacheReader(tmp_path / "two.h5").features == {}


def mistake(words: str, said: str, *, code: int = 1) -> pytest.param:
    return pytest.param(words, said, code, id=words)


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        mistake("probe CACHE DATA", "Missing option '-o'", code=2),
        mistake("probe CACHE -o OUT", "Missing argument 'DATA'", code=2),
        mistake("probe CACHE DATA DATA -o OUT", "unexpected extra argument", code=2),
        mistake("probe CACHE DATA -o OUT --folds 1", "1 is not in the range 2<=x<=100", code=2),
        mistake("probe nothing.h5 DATA -o OUT", "nothing.h5"),
        mistake("probe CACHE nothing -o OUT", "no such folder: nothing"),
        mistake("probe CACHE DATA -o CACHE", r"t\.h5 exists: choose another -o, or delete it"),
        mistake("probe CACHE DATA -o DATA", "is a folder: name the file to write"),
        mistake("probe CACHE DATA -o nowhere/p.h5", "the folder of nowhere/p.h5 does not exist"),
        mistake(
            "probe CACHE DATA -o OUT --cross-fit lesion", "--cross-fit lesion is a column of a table: .*--csv FILE"
        ),
        mistake("probe CACHE DATA -o OUT --csv TABLE", "--csv holds groups: name their column with --cross-fit"),
        mistake("probe CACHE DATA -o OUT --cross-fit image --csv TABLE", "--csv holds groups"),
        mistake("probe CACHE DATA -o OUT --image-column x", "--image-column x is a column of a table"),
        mistake("probe CACHE DATA -o OUT --cross-fit lesion --csv none.csv", "cannot read none.csv"),
        mistake("probe CACHE DATA -o OUT --cross-fit patient --csv TABLE", "no column patient; it has image, lesion"),
        mistake("probe CACHE DATA -o OUT --cross-fit lesion --csv TABLE", "one lesion to each of 30 of 60 images"),
        mistake("probe CACHE DATA -o OUT --cross-fit image --folds 31", "30 groups cannot fill 31 folds"),
        mistake("rehead CACHE --template {} -o CACHE", r"t\.h5 exists: choose another -o, or delete it"),
        mistake("rehead CACHE -o OUT", "other prompts are needed: --prompts FILE, --template TEXT, or both"),
        mistake("rehead CACHE --prompts none.yaml -o OUT", "cannot read the prompts in none.yaml"),
        mistake("rehead CACHE --prompts TABLE -o OUT", "TABLE must be a mapping|is not YAML"),
        mistake("rehead CACHE --template x -o OUT", "a template has exactly one {}, where the prompt goes, got 'x'"),
        mistake("rehead CACHE --template {} -o OUT", "pass --teacher, its folder or hub name"),
        mistake("rehead CACHE --template {} -o OUT --calibrate", "a temperature needs labels: .* --data DATA"),
        mistake("rehead CACHE --template {} -o OUT --teacher DATA", "is not a SigLIP or CLIP model"),
    ],
)
def test_a_users_mistake_is_one_error_and_leaves_nothing(
    words: str, said: str, code: int, cli: Cli, tiny_cache: Path, tiny_data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TABLE").write_text("image,lesion\nelsewhere.png,1\n")
    places = {"CACHE": tiny_cache, "DATA": tiny_data, "OUT": tmp_path / "out.h5"}
    found = cli("cache", *(places.get(word, word) for word in words.split()))
    assert found[0] == code, found[2]
    assert found[1] == ""
    assert "Traceback" not in found[2]
    assert re.search(said, found[2]), found[2]
    assert [path.name for path in tmp_path.iterdir()] == ["TABLE"]


def test_probe_of_other_images_says_that_the_cache_knows_none(
    cli: Cli, tiny_cache: Path, data: Path, tmp_path: Path
) -> None:
    for path in data.glob("*/*/*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    error = one_error(cli("cache", "probe", tiny_cache, data, "-o", tmp_path / "p.h5"))
    assert "knows none of the 60 images" in error


def test_probe_without_train_images_names_the_splits(cli: Cli, tiny_cache: Path, data: Path, tmp_path: Path) -> None:
    shutil.rmtree(data / "train")
    error = one_error(cli("cache", "probe", tiny_cache, data, "-o", tmp_path / "p.h5"))
    assert "has no images in split 'train'; it has: val, test" in error


def test_probe_of_a_class_without_train_images_names_it(cli: Cli, tiny_cache: Path, data: Path, tmp_path: Path) -> None:
    shutil.rmtree(data / "train" / NEVUS)
    error = one_error(cli("cache", "probe", tiny_cache, data, "-o", tmp_path / "p.h5"))
    assert f"too few train images of {NEVUS} (0); a probe needs at least 2 of each class" in error


def test_probe_of_a_cache_without_embeddings_says_what_to_build(
    cli: Cli, tiny_cache: Path, tiny_data: Path, tmp_path: Path, resealed: Resealed
) -> None:
    bare = resealed(tiny_cache, lambda table: dataclasses.replace(table, features={}))
    error = one_error(cli("cache", "probe", bare, tiny_data, "-o", tmp_path / "p.h5"))
    assert "holds no embeddings, from which logits could be made: build it anew with --embedding" in error


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"kind": "torchscript", "head": "outputs"}, "its teacher is a classifier that cannot be taken apart"),
        ({"kind": "imported", "as": "logits"}, "it was imported from SCORES, and scores have none"),
        ({"kind": "siglip", "head": "probe"}, "probe its parent anew with --embedding"),
    ],
)
def test_nobody_is_sent_for_embeddings_that_cannot_be_had(
    teacher: dict[str, str], said: str, cli: Cli, tiny_cache: Path, tiny_data: Path, tmp_path: Path, resealed: Resealed
) -> None:
    bare = resealed(tiny_cache, lambda table: dataclasses.replace(table, features={}), identity={"teacher": teacher})
    words = (bare, tiny_data, "-o", tmp_path / "p.h5")
    assert said in one_error(cli("cache", "probe", *words))
    if teacher["kind"] != "siglip":
        error = one_error(cli("cache", "rehead", bare, "--template", "a {}", "-o", tmp_path / "r.h5"))
        assert "is not from a teacher that takes prompts" in error
        assert "probe" not in error


def test_verify_of_an_imported_cache_says_that_its_teacher_cannot_be_asked(
    cli: Cli, tiny_cache: Path, tiny_data: Path, resealed: Resealed
) -> None:
    imported = resealed(tiny_cache, identity={"teacher": {"kind": "imported", "as": "logits"}})
    error = one_error(cli("cache", "verify", imported, tiny_data, "--teacher", "x"))
    assert "was imported from SCORES: no teacher can be asked again here" in error


def test_an_image_that_the_cache_lacks_is_told_with_the_command_that_adds_it(
    cli: Cli, tiny_cache: Path, data: Path, tmp_path: Path
) -> None:
    path = next(data.glob("train/melanoma/*.png"))
    path.with_name("new.png").write_bytes(path.read_bytes() + b"\0")
    error = one_error(cli("cache", "probe", tiny_cache, data, "-o", tmp_path / "p.h5"))
    assert f"lacks 1 of 61 images (first: train/melanoma/new.png): run `softlabel cache build {data}" in error


def test_build_and_verify_of_a_derived_cache_say_what_it_is(
    cli: Cli, tiny_cache: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    derived = tmp_path / "p.h5"
    assert cli("cache", "probe", tiny_cache, tiny_data, "-o", derived)[0] == 0
    error = one_error(cli("cache", "verify", derived, tiny_data, "--teacher", tiny_teacher))
    assert "was made by `softlabel cache probe` from the embeddings of another cache" in error
    before = derived.read_bytes()
    words = ("--teacher", tiny_teacher, "--views", 3, "--precision", "fp32")
    error = one_error(cli("cache", "build", tiny_data, "-o", derived, *words))
    assert error.endswith("p.h5 is of another recipe, as it comes from `softlabel cache probe`: choose another -o")
    assert derived.read_bytes() == before


def test_a_full_disk_leaves_nothing_and_names_the_line_that_repeats_it(
    cli: Cli, tiny_cache: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    file_limit: Callable[[int], AbstractContextManager[None]],
) -> None:  # fmt: skip
    words = ["cache", "probe", str(tiny_cache), str(tiny_data), "-o", str(tmp_path / "p.h5")]
    monkeypatch.setattr(sys, "argv", ["softlabel", *words])
    with file_limit(10_000):
        error = one_error(cli(*words))
    assert error.splitlines()[-1].strip() == "softlabel " + " ".join(words)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(
    cli: Cli, tiny_cache: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cache.fill.NewFile.seal", interrupt)
    code, out, err = cli("cache", "probe", tiny_cache, tiny_data, "-o", tmp_path / "p.h5")
    assert (code, out) == (130, "")
    assert "Interrupted" in err
    assert list(tmp_path.iterdir()) == []
