"""A run on several caches is the run on the file that they would be merged into."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cache import CacheReader, Table, merge
from cache.errors import CacheDamaged, CacheMismatch
from pipeline.build import BuildConfig, build_cache
from pipeline.errors import RunError, WeakTeacher
from pipeline.runs import RunFolder
from pipeline.train import TrainConfig, train

from .run_metrics import metrics

CONFIG = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=2, batch_size=8)
Cli = Callable[..., tuple[int, str, str]]
Halves = tuple[Path, Path]


def without_images(data: Path, target: Path, remainder: int) -> Path:
    """A copy without the images of one parity."""
    shutil.copytree(data, target)
    for path in target.glob("*/*/*.png"):
        if int(path.stem) % 2 == remainder:
            path.unlink()
    return target


@pytest.fixture(scope="module")
def halves(tiny_data: Path, tiny_build: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Halves:
    """Two caches: all images but with two views, and those of odd numbers with three."""
    folder = tmp_path_factory.mktemp("halves")
    even = without_images(tiny_data, folder / "even images", 1)
    odd = without_images(tiny_data, folder / "odd images", 0)
    build_cache(even, folder / "a.h5", tiny_build)
    build_cache(tiny_data, folder / "b.h5", dataclasses.replace(tiny_build, views=2))
    build_cache(odd, folder / "b.h5", tiny_build)
    return folder / "a.h5", folder / "b.h5"


@pytest.fixture(scope="module")
def union_run(tiny_data: Path, halves: Halves, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on both of them."""
    return train(tiny_data, halves, tmp_path_factory.mktemp("runs") / "run", CONFIG, workers=0, report=False).path


def test_it_equals_the_run_on_the_merged_file_bit_for_bit(
    tiny_data: Path, halves: Halves, union_run: Path, tmp_path: Path, tiny_cache: Path
) -> None:
    merged = merge(halves, tmp_path / "merged.h5")
    assert merged.content_id == CacheReader(tiny_cache).content_id
    train(tiny_data, merged.path, tmp_path / "run", CONFIG, workers=0, report=False)
    one, other = (RunFolder(path).load_last() for path in (union_run, tmp_path / "run"))
    assert metrics(union_run) == metrics(tmp_path / "run")
    for part in ("model", "best_model"):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(tensor, other[part][name]) for name, tensor in one[part].items())
    assert {name for name, value in one["ids"].items() if value != other["ids"][name]} == {"seal"}
    assert one["config"]["cache"] == [str(half) for half in halves]
    assert RunFolder(union_run).cache_paths() == halves


def test_it_goes_on_with_the_same_files_in_the_same_order_alone(
    tiny_data: Path, halves: Halves, union_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = RunFolder.save

    def interrupted(self: RunFolder, checkpoint: dict[str, Any], card: Any) -> None:
        save(self, checkpoint, card)
        if checkpoint["epoch"] == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_data, halves, tmp_path / "run", CONFIG, workers=0, report=False)
    with pytest.raises(RunError, match="other settings") as caught:
        train(tiny_data, halves[::-1], tmp_path / "run", CONFIG, resume=True, workers=0, report=False)
    assert str(caught.value).splitlines()[1].strip() == (
        f"it was begun with {halves[0]}, {halves[1]}, and got {halves[1]}, {halves[0]}: name the same caches in the "
        "same order, or start a new run with another -o"
    )
    train(tiny_data, halves, tmp_path / "run", CONFIG, resume=True, workers=0, report=False)
    assert metrics(tmp_path / "run") == metrics(union_run)


def test_the_command_takes_them_and_evaluate_finds_them_again(
    cli: Cli, tiny_data: Path, halves: Halves, tmp_path: Path
) -> None:
    flags = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--epochs", 1, "--workers", 0, "--no-report")
    code, out, err = cli("train", tiny_data, *halves, halves[0], "-o", tmp_path / "run", *flags, "--anyway")
    assert code == 0, err
    assert out.startswith(f"{tmp_path / 'run'}: best epoch 1")
    said = err
    code, out, err = cli("evaluate", tmp_path / "run", tiny_data, "--workers", 0)
    assert code == 0, err
    assert "agreement" in out
    rows = [CacheReader(half).n_rows for half in halves]
    assert re.search(
        rf"caches   {halves[0]} \({rows[0]} rows\), {halves[1]} \({rows[1]} rows, \d+ of them in an ", said
    )
    assert f"notice   {halves[0]} is named twice, and counts once" in said
    assert "no agreement with the teacher" not in err


def one_error(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert (code, out) == (1, ""), err
    assert "Traceback" not in err
    assert err.count("Error: ") == 1
    return err[err.index("Error: ") :].strip()


def test_words_in_the_wrong_order_and_missing_files_are_one_line(
    cli: Cli, tiny_data: Path, halves: Halves, tmp_path: Path
) -> None:
    order = "the order is `softlabel train DATA CACHE`"
    out = ("-o", tmp_path / "run")
    for words, said in (
        ((*halves, tiny_data), f"{halves[0]} is a cache: {order}"),
        ((tiny_data, halves[0], tiny_data), f"{tiny_data} is a folder, no cache: name the .h5 file itself"),
        ((tiny_data, tiny_data, halves[0]), f"{tiny_data} is a folder, no cache: {order}"),
        ((tiny_data, *halves, tmp_path / "none.h5"), f"no cache at {tmp_path / 'none.h5'}: is the path right?"),
    ):
        error = one_error(cli("train", *words, *out))
        assert said in error
        assert len(error.splitlines()) == 1
    assert cli("train", tiny_data, *out)[0] == 2
    assert not (tmp_path / "run").exists()


def test_caches_of_other_recipes_are_one_error_with_every_field(
    cli: Cli, tiny_data: Path, halves: Halves, resealed: Callable[..., Path], tmp_path: Path
) -> None:
    views = {**CacheReader(halves[1]).manifest.identity["views"], "seed": "7"}
    other = resealed(halves[1], identity={"views": views, "precision": "bf16"})
    title, *lines = one_error(cli("train", tiny_data, halves[0], other, "-o", tmp_path / "run")).splitlines()
    assert (
        f"{halves[0]} and {other} are of other recipes, with another --precision and another --seed (the first against "
        "the second): leave one of them out, or build it anew" in title
    )
    assert [line.split(":")[0].strip() for line in lines] == ["precision", "views.seed"]


def test_images_that_none_of_them_has_are_computed_into_one_file_that_takes_the_others_over(
    tiny_data: Path, tiny_build: BuildConfig, halves: Halves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    new = next((data / "train").glob("*/*.png"))
    new.write_bytes(new.read_bytes() + b"\0")
    with pytest.raises(CacheMismatch) as caught:
        train(data, halves, tmp_path / "run", CONFIG, workers=0)
    union = f"the union of {halves[0]} and {halves[1]}"
    assert str(caught.value).startswith(
        f"{union} lacks 1 of 45 images (first: {new.relative_to(data)}): run `softlabel "
    )
    said = str(caught.value).split("`")
    teacher = Path(tiny_build.teacher)
    reuse = ["--reuse", str(halves[0]), "--reuse", str(halves[1])]
    words = ["cache", "build", str(data), "-o", "all.h5", *reuse, "--teacher", teacher.name, "--views", "3"]
    assert shlex.split(said[1]) == ["softlabel", *words]
    assert said[2].startswith(f" with your own path to {teacher.name}, which computes only these ")
    assert "and name all.h5 instead; if other caches have them, " in said[2]
    monkeypatch.chdir(tmp_path)
    words[words.index(teacher.name)] = tiny_build.teacher
    code, out, err = cli(*words, "--workers", 0)
    assert code == 0, err
    assert "(3 computed now in" in out
    with pytest.raises(CacheMismatch, match=r"-o all-2\.h5 "):
        train(data, halves, tmp_path / "run", CONFIG, workers=0)


def test_the_advice_of_a_weak_teacher_begins_with_one_file(
    tiny_data: Path, halves: Halves, resealed: Callable[..., Path], tmp_path: Path
) -> None:
    def say_nothing(table: Table) -> None:
        table.logits["class"][:] = 0

    weak = [resealed(half, say_nothing, name=f"{number}.h5") for number, half in enumerate(halves)]
    with pytest.raises(WeakTeacher) as caught:
        train(tiny_data, weak, tmp_path / "run", CONFIG, workers=0)
    said = [line.strip() for line in str(caught.value).splitlines()]
    merging = said.index(f"softlabel cache merge {weak[0]} {weak[1]} -o all.h5")
    assert said[merging - 1] == f"softlabel cache info {weak[0]}"
    assert said[merging + 1].startswith("softlabel cache rehead all.h5 ")
    assert said[merging + 2].startswith("softlabel cache probe all.h5 ")
    assert said.count(said[merging]) == 1


def test_a_cache_without_embeddings_trains_beside_one_that_has_some(
    cli: Cli, tiny_data: Path, halves: Halves, resealed: Callable[..., Path], tmp_path: Path
) -> None:
    bare = resealed(halves[1], lambda table: dataclasses.replace(table, features={}))
    flags = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--epochs", 1, "--workers", 0, "--no-report")
    code, _, err = cli("train", tiny_data, halves[0], bare, "-o", tmp_path / "run", *flags, "--anyway")
    assert code == 0, err
    assert f"; embeddings are left out, as {bare} has none, and training needs none" in err
    data = shutil.copytree(tiny_data, tmp_path / "images")
    new = next((data / "train").glob("*/*.png"))
    new.write_bytes(new.read_bytes() + b"\0")
    error = one_error(cli("train", data, halves[0], bare, "-o", tmp_path / "other", *flags))
    assert f"-o all.h5 --reuse {bare} --teacher" in error
    assert " --no-embedding" in error


def test_a_damaged_file_is_named(tiny_data: Path, halves: Halves, flipped: Callable[..., Path], tmp_path: Path) -> None:
    damaged = flipped(halves[1], "logits/0")
    with pytest.raises(CacheDamaged, match=rf"^{damaged} is damaged in 1 block: logits/0 rows 0-"):
        train(tiny_data, [halves[0], damaged], tmp_path / "run", CONFIG, workers=0)


def test_the_banner_calls_files_as_they_are_called_from_here(
    cli: Cli, tiny_data: Path, halves: Halves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(halves[0], tmp_path / "a.h5")
    monkeypatch.chdir(tmp_path)
    flags = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--epochs", 1, "--workers", 0, "--no-report")
    code, _, err = cli("train", tiny_data, "a.h5", halves[1], "-o", "run", *flags, "--anyway")
    assert code == 0, err
    assert "\ncaches   a.h5 (" in err
    assert f"), {halves[1]} (" in err
