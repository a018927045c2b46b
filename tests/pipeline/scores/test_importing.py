"""A cache of imported scores: training uses exactly them, a stopped import goes on, mistakes cost nothing."""

from __future__ import annotations

import csv
import functools
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cache import CacheReader, SegmentedWriter
from cache.errors import CacheMismatch
from data.errors import BadImage
from data.options import ScanOptions
from data.samples import FOLDER_TASK, SampleSet
from data.scan import scan_data
from data.views import ViewPolicy, draw
from pipeline.errors import SettingError
from pipeline.scores import importing as module
from pipeline.scores.importing import ImportConfig, import_scores
from pipeline.targets import TeacherTargets
from pipeline.train import TrainConfig, train

Cli = Callable[..., tuple[int, str, str]]
Rows = dict[tuple[str, int], bytes]
RowsOf = Callable[[Path], Rows]
LOGITS = ImportConfig(kind="logits", views=3)
SKIP = ScanOptions(skip_bad_images=True)


class Killed(BaseException):
    """Nothing answers it: only what is sealed on the disk is left, as after a kill."""


def logits_of(images: SampleSet) -> dict[str, NDArray[np.float32]]:
    """Name -> made-up scores, more for the image's own class; the same at every call."""
    classes = images.classes[FOLDER_TASK]
    drawn = np.random.default_rng(0).normal(size=(len(images.samples), len(classes)))
    own = [[3.0 * (sample.labels[FOLDER_TASK] == name) for name in classes] for sample in images.samples]
    return {s.name: row for s, row in zip(images.samples, (drawn + own).astype(np.float32), strict=True)}


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([list(header), *map(list, rows)])
    return path


@pytest.fixture(scope="module")
def said(tiny_data: Path) -> dict[str, NDArray[np.float32]]:
    """What the teacher says of each image."""
    return logits_of(scan_data(tiny_data))


@pytest.fixture(scope="module")
def classes(tiny_data: Path) -> tuple[str, ...]:
    """The classes of the images."""
    return scan_data(tiny_data).classes[FOLDER_TASK]


@pytest.fixture(scope="module")
def scores(
    said: dict[str, NDArray[np.float32]], classes: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same as a CSV, columns turned around."""
    rows = ([*row.tolist()[::-1], name] for name, row in said.items())
    return write_csv(tmp_path_factory.mktemp("scores") / "api.csv", [*classes[::-1], "image"], rows)


@pytest.fixture(scope="module")
def imported(scores: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed import, in segments."""
    out = tmp_path_factory.mktemp("imported") / "t.h5"
    return import_scores(scores, tiny_data, out, LOGITS).path


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the images, to be changed."""
    return shutil.copytree(tiny_data, tmp_path / "images")


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, type[BaseException]], None]:
    """`stop_at(n, error)`: segments are small, and the n-th image raises `error`, once."""
    add = SegmentedWriter.add
    monkeypatch.setattr(module, "SegmentedWriter", functools.partial(SegmentedWriter, segment_rows=16))

    def stop_at(n_images: int, error: type[BaseException]) -> None:
        count = 0

        def stopping(self: SegmentedWriter, *args: Any, **named: Any) -> None:
            nonlocal count
            count += 1
            if count == n_images:
                raise error
            add(self, *args, **named)

        monkeypatch.setattr(SegmentedWriter, "add", stopping)

    return stop_at


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_a_student_learns_from_exactly_the_scores_of_the_table(
    kind: str, scores: Path, said: dict[str, NDArray[np.float32]], classes: tuple[str, ...], imported: Path,
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = scores
    if kind == "npz":
        path = tmp_path / "api.npz"
        np.savez(path, image=list(said)[::-1], classes=classes, scores=np.stack(list(said.values()))[::-1])
    result = import_scores(path, tiny_data, tmp_path / "t.h5", LOGITS)
    assert (result.n_samples, result.n_rows, result.n_imported, result.is_fixed) == (60, 120, 120, True)
    reader = CacheReader(result.path)
    assert reader.recipe_id == CacheReader(imported).recipe_id
    assert reader.content_id == CacheReader(imported).content_id
    used: dict[str, list[NDArray[np.float32]]] = {}
    teacher_logits = TeacherTargets.teacher_logits

    def recording(self: TeacherTargets, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        found = teacher_logits(self, rows)
        for at, row in zip(self.reader.sample_of_row[rows], found, strict=True):
            used.setdefault((self.reader.names or [])[at], []).append(row)
        return found

    monkeypatch.setattr(TeacherTargets, "teacher_logits", recording)
    config = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=1, batch_size=8)
    assert train(tiny_data, result.path, tmp_path / "run", config, workers=0).best_epoch == 1
    assert set(used) >= {name for name in said if name.startswith("train/")}
    for name, rows in used.items():
        for row in rows:
            np.testing.assert_array_equal(row, said[name])


def test_the_views_are_those_of_a_build(imported: Path, tiny_cache: Path, tiny_data: Path) -> None:
    ours, built = CacheReader(imported), CacheReader(tiny_cache)
    assert ours.pairs() == built.pairs()
    np.testing.assert_array_equal(ours.params(slice(0, 120)), built.params(slice(0, 120)))
    away = ours.witness(slice(0, 120)).astype(int) - built.witness(slice(0, 120))
    assert np.abs(away).max() <= 2, "the teacher saw 32 px, an import renders 224"


def test_the_manifest_says_where_the_scores_are_from_and_no_path(imported: Path, scores: Path) -> None:
    manifest = CacheReader(imported).manifest
    teacher = manifest.identity["teacher"]
    assert re.fullmatch(r"[0-9a-f]{64}", teacher.pop("scores_sha256"))
    assert teacher == {"kind": "imported", "as": "logits", "of": "the clean image"}
    assert manifest.identity["preprocessing"] == {"size_px": 224}
    assert manifest.provenance["teacher"] == "api"
    assert manifest.provenance["scores"] == "api.csv"
    assert str(scores.parent) not in json.dumps([manifest.identity, manifest.provenance])
    assert CacheReader(imported).features == {}


def test_classes_beyond_those_of_the_images_are_kept(
    few_images: Path, classes: tuple[str, ...], tmp_path: Path
) -> None:
    said = logits_of(scan_data(few_images))
    path = write_csv(tmp_path / "s.csv", ["image", "a wart", *classes], ([n, 9, *z.tolist()] for n, z in said.items()))
    config = ImportConfig(kind="logits", views=1, names=False)
    reader = CacheReader(import_scores(path, few_images, tmp_path / "t.h5", config).path)
    assert reader.names is None
    assert reader.tasks[FOLDER_TASK] == ("a wart", *classes)
    assert set(reader.logits(slice(0, reader.n_rows))[:, 0]) == {9}


def test_scores_of_each_view_stand_at_their_view(few_images: Path, classes: tuple[str, ...], tmp_path: Path) -> None:
    images = scan_data(few_images)
    wanted = [(s, view) for s in images.samples for view in range(3 if s.split == "train" else 1)]
    said = {(s.key, view): np.arange(5) * view - number for number, (s, view) in enumerate(wanted)}
    rows = [[s.name, view, *said[s.key, view].tolist()] for s, view in wanted]
    path = write_csv(tmp_path / "s.csv", ["image", "view", *classes], rows[::-1])
    result = import_scores(path, few_images, tmp_path / "t.h5", ImportConfig(kind="logits", seed=5))
    assert (result.views, result.is_fixed, result.n_rows) == (3, False, len(wanted))
    reader = CacheReader(result.path)
    for row, (at, view) in enumerate(zip(reader.sample_of_row, reader.view.tolist(), strict=True)):
        key = reader.keys[at].tobytes()
        np.testing.assert_array_equal(reader.logits([row])[0], said[key, view])
        np.testing.assert_array_equal(reader.params([row])[0], draw(ViewPolicy(), key, view, 5))


@pytest.mark.parametrize("error", [KeyboardInterrupt, Killed])
def test_a_stopped_import_ends_in_the_rows_of_an_undisturbed_one(
    error: type[BaseException], scores: Path, tiny_data: Path, imported: Path, tmp_path: Path, rows_of: RowsOf,
    stop_at: Callable[[int, type[BaseException]], None],
) -> None:  # fmt: skip
    out = tmp_path / "t.h5"
    stop_at(40, error)
    with pytest.raises(error):
        import_scores(scores, tiny_data, out, LOGITS)
    assert not out.exists()
    resumed = import_scores(scores, tiny_data, out, LOGITS)
    assert resumed.n_imported < (120 if error is Killed else 81)
    assert rows_of(out) == rows_of(imported)
    assert CacheReader(out).content_id == CacheReader(imported).content_id
    assert [path.name for path in tmp_path.iterdir()] == ["t.h5"]


def test_more_views_and_more_images_join_those_that_stand(
    scores: Path, data: Path, tmp_path: Path, rows_of: RowsOf, imported: Path
) -> None:
    out, aside = tmp_path / "t.h5", tmp_path / "aside"
    aside.mkdir()
    later = sorted(data.glob("*/*/00001.png"))
    for number, path in enumerate(later):
        path.rename(aside / str(number))
    few = import_scores(scores, data, out, ImportConfig(kind="logits", views=2, partial=True))
    assert (few.n_samples, few.n_rows) == (45, 25 * 2 + 20)
    assert import_scores(scores, data, out, ImportConfig(kind="logits", views=3, partial=True)).n_imported == 25
    for number, path in enumerate(later):
        (aside / str(number)).rename(path)
    assert import_scores(scores, data, out, LOGITS).n_imported == 5 * (3 + 1 + 1)
    assert rows_of(out) == rows_of(imported)
    before = out.read_bytes()
    assert import_scores(scores, data, out, LOGITS).n_imported == 0
    assert out.read_bytes() == before


def test_images_that_exchanged_their_names_are_not_mixed_with_what_stands(
    scores: Path, data: Path, imported: Path, tmp_path: Path
) -> None:
    out = shutil.copy(imported, tmp_path / "t.h5")
    a, b = sorted(data.glob("train/melanoma/*.png"))[:2]
    a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
    a.write_bytes(b_bytes)
    b.write_bytes(a_bytes)
    with pytest.raises(CacheMismatch, match=r"6 rows of .*t\.h5 have other scores than .* Choose another -o"):
        import_scores(scores, data, out, LOGITS)
    assert Path(out).read_bytes() == imported.read_bytes()


def test_bad_images_stop_an_import_before_its_cache_appears_or_are_left_out_and_remembered(
    scores: Path, data: Path, imported: Path, tmp_path: Path, rows_of: RowsOf
) -> None:
    out, bad = tmp_path / "t.h5", sorted(data.glob("train/*/*.png"))[3]
    content = bad.read_bytes()
    bad.write_bytes(content[:80])
    with pytest.raises(BadImage, match=r"(?s)1 of 60 images cannot be decoded.*--skip-bad-images.*" + bad.name):
        import_scores(scores, data, out, LOGITS)
    assert not out.exists()
    result = import_scores(scores, data, out, LOGITS, SKIP)
    assert (result.n_skipped, result.n_samples, result.n_imported) == (1, 59, 117)
    assert len(CacheReader(out).manifest.skipped) == 1
    bad.write_bytes(content)
    assert import_scores(scores, data, out, LOGITS).n_imported == 3
    assert rows_of(out) == rows_of(imported)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"kind": "percent"}, "logits or probabilities, got 'percent'"), ({"views": 0}, r"in 1\.\.65535, got 0"),
     ({"seed": -1}, "got -1"), ({"workers": -1}, "got -1")],
)  # fmt: skip
def test_settings_out_of_range_are_refused_with_the_value(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        ImportConfig(**({"kind": "logits"} | wrong))


def one_error(result: tuple[int, str, str]) -> str:
    """The message of a command that ended with exit code 1."""
    code, out, err = result
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    assert err.count("Error: ") == 1
    return err[err.index("Error: ") :].strip()


def test_the_command_says_what_the_scores_are_worth_and_info_where_they_are_from(
    cli: Cli, scores: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "t.h5"
    words = ("cache", "import", scores, tiny_data, "-o", out, "--as", "logits", "--name", "an API")
    code, said, err = cli(*words, "--views", 3)
    assert code == 0, err
    assert re.fullmatch(
        re.escape(f"{out}: 120 views of 60 images (120 imported now in ") + r"\d+ s\); the 3 views of a train image "
        r"share the scores of the clean one, which is weaker than scoring each view \(Beyer et al\. 2022\)\n", said,
    )  # fmt: skip
    info = cli("cache", "info", out)[1]
    assert "teacher     an API, imported from api.csv as logits of the clean image\n" in info
    assert json.loads(cli("cache", "info", out, "--json")[1])["imported_from"] == "api.csv"
    error = one_error((1, "", cli("cache", "verify", out, tiny_data, "--teacher", "t")[2]))
    assert "was imported from api.csv: no teacher can be asked again here" in error
    assert "weaker" not in cli(*words[:4], "-o", tmp_path / "one.h5", *words[6:], "--views", 1)[1]


def test_training_with_images_that_were_left_out_names_the_import(
    cli: Cli, scores: Path, data: Path, tmp_path: Path
) -> None:
    out, lines = tmp_path / "t.h5", scores.read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join(lines[:1] + lines[2:]))
    assert cli("cache", "import", tmp_path / "few.csv", data, "-o", out, "--as", "logits", "--partial")[0] == 0
    error = one_error(cli("train", data, out, "-o", tmp_path / "run", "--student-size", 32))
    assert "lacks 1 of 45 images (first: train/" in error
    assert f"softlabel cache import few.csv {data} -o {out}" in error
    assert "has their scores; a longer table makes another cache, under another -o" in error


def test_the_predictions_of_a_student_can_be_imported(
    cli: Cli, tiny_run: Path, few_images: Path, tmp_path: Path
) -> None:
    """`softlabel predict` writes paths, labels and probabilities of four digits."""
    code, table, err = cli("predict", tiny_run, *sorted(few_images.glob("*/*/*.png")))
    assert code == 0, err
    (tmp_path / "p.csv").write_text(table)
    words = ("cache", "import", tmp_path / "p.csv", few_images, "-o", tmp_path / "t.h5", "--as", "probabilities")
    code, _, err = cli(*words)
    assert code == 0, err
    assert "hold no number and are left out: label" in err


WRONG: dict[str, tuple[Callable[[str], str], tuple[str, ...], str]] = {
    "an unknown image": (lambda text: text.replace("/00001.png", "/x.png", 1), (), "no image train/"),
    "a misspelt class": (lambda text: text.replace("melanoma", "melanom", 1), (), "melanoma; did you mean 'melanom'?"),
    "logits as probabilities": (str, ("--as", "probabilities"), "60 of 60 rows of "),
    "an empty cell": (lambda text: text + ",1,1,1,1,x.png\n", (), "line 62: vascular lesion is empty"),
    "a folder as output": (str, ("-o", "."), "is a folder: name the file to write"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_ends_in_one_message_and_no_file(
    mistake: str, cli: Cli, scores: Path, tiny_data: Path, tmp_path: Path
) -> None:
    change, words, said = WRONG[mistake]
    table = tmp_path / "s.csv"
    table.write_text(change(scores.read_text()))
    error = one_error(cli("cache", "import", table, tiny_data, "-o", tmp_path / "t.h5", "--as", "logits", *words))
    assert said in error
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"]


@pytest.mark.parametrize("words", [(), ("--as", "percent"), ("--as", "logits", "--views", "0")])
def test_what_the_scores_are_must_be_said(words: tuple[str, ...], cli: Cli, scores: Path, tmp_path: Path) -> None:
    code, out, err = cli("cache", "import", scores, tmp_path, "-o", tmp_path / "t.h5", *words)
    assert (code, out) == (2, "")
    assert "Usage: softlabel cache import" in err


def test_another_table_for_the_same_cache_is_refused(
    cli: Cli, scores: Path, tiny_data: Path, imported: Path, tmp_path: Path
) -> None:
    out, table = shutil.copy(imported, tmp_path / "t.h5"), tmp_path / "s.csv"
    table.write_text(re.sub(r"(?m)^(-?\d)", r"1\1", scores.read_text().replace("-", "")))
    error = one_error(cli("cache", "import", table, tiny_data, "-o", out, "--as", "logits", "--views", 3))
    assert "is of another recipe" in error
    assert "teacher.scores_sha256" in error
    assert Path(out).read_bytes() == imported.read_bytes()


def test_ctrl_c_and_a_full_disk_name_the_line_that_goes_on(
    cli: Cli, scores: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    stop_at: Callable[[int, type[BaseException]], None], file_limit: Callable[[int], AbstractContextManager[None]],
) -> None:  # fmt: skip
    words = [
        "cache",
        "import",
        str(scores),
        str(tiny_data),
        "-o",
        str(tmp_path / "t.h5"),
        "--as",
        "logits",
        "--views",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", ["softlabel", *words])
    stop_at(9, KeyboardInterrupt)
    code, _, err = cli(*words)
    assert code == 130
    assert err.rstrip().endswith("Go on with:\n  softlabel " + " ".join(words))
    with file_limit(10_000):
        error = one_error(cli(*words))
    assert error.splitlines()[-1].strip() == "softlabel " + " ".join(words)
    assert cli(*words)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["t.h5"]
