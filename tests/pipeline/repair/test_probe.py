"""A probe labels every row from its embedding; out of fold, no group is answered by a head that saw it."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from cache import CacheReader, Table, merge
from cache.errors import CacheMismatch
from cache.fill import write_table
from data.errors import BadSamples
from data.options import ScanOptions
from data.samples import FOLDER_TASK
from data.scan import scan_data
from pipeline.info import describe_cache_as_text
from pipeline.joining import join
from pipeline.recompute import recompute_rows
from pipeline.repair import logistic
from pipeline.repair.probe import ProbeConfig, ProbeResult, probe_cache
from pipeline.repair.remedies import derived_by
from pipeline.targets import SEEN
from pipeline.train import TrainConfig, train

Resealed = Callable[..., Path]
OTHER = "melanocytic nevus"
CROSS = ProbeConfig(cross_fit="image", folds=3)
N_FEATURES = 200
FEW_STRENGTHS = (1e-4, 1e-2, 1.0)


def with_embeddings(value_of: Callable[[bytes], np.ndarray]) -> Callable[[Table], Table]:
    """All views of a sample get its vector, and a little noise each."""

    def change(table: Table) -> Table:
        rows = np.repeat(np.arange(len(table.key)), np.diff(table.first_row.astype(int)))
        vectors = np.stack([value_of(bytes(key)) for key in table.key])[rows]
        noise = np.random.default_rng(0).normal(0, 0.01, vectors.shape)
        return dataclasses.replace(table, features={"embedding": (vectors + noise).astype("<f2")})

    return change


def noise_of(key: bytes) -> np.ndarray:
    return np.random.default_rng(list(key)).normal(size=N_FEATURES)


@pytest.fixture(autouse=True)
def _few_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the time."""
    monkeypatch.setattr(logistic, "C_GRID", FEW_STRENGTHS)


@pytest.fixture(scope="session")
def label_of(tiny_data: Path) -> dict[bytes, int]:
    """Content key -> number of its class."""
    images = scan_data(tiny_data)
    return {sample.key: images.classes[FOLDER_TASK].index(sample.labels[FOLDER_TASK]) for sample in images.samples}


def resealed_at(folder: Path, source: Path, change: Callable[[Table], Table]) -> Path:
    reader = CacheReader(source)
    write_table(folder / "t.h5", reader.manifest, change(reader.table()))
    return folder / "t.h5"


@pytest.fixture(scope="session")
def telling(tiny_cache: Path, label_of: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache whose embeddings tell the class, and not much else."""
    centres = np.random.default_rng(7).normal(size=(5, 16))
    change = with_embeddings(lambda key: centres[label_of[key]] + 0.6 * noise_of(key)[:16])
    return resealed_at(tmp_path_factory.mktemp("telling"), tiny_cache, change)


@pytest.fixture(scope="session")
def crossed(telling: Path, tiny_data: Path) -> CacheReader:
    """Its cross-fitted probe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logistic, "C_GRID", FEW_STRENGTHS)
        return probed(telling, tiny_data)


@pytest.fixture
def noise(tiny_cache: Path, tmp_path: Path) -> Path:
    """A cache whose embeddings say who it is and nothing of the class."""
    return resealed_at(tmp_path, tiny_cache, with_embeddings(noise_of))


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the images, to be relabelled."""
    return shutil.copytree(tiny_data, tmp_path / "images")


def probed(cache: Path, data: Path, config: ProbeConfig = CROSS, name: str = "") -> CacheReader:
    out = cache.with_name(name or f"probed-{len(list(cache.parent.iterdir()))}.h5")
    return CacheReader(probe_cache(cache, data, out, config).path)


def answers(reader: CacheReader, data: Path, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Logits of the clean views of a split, and the labels."""
    images = scan_data(data)
    targets = join(reader, {split: images.of_split(split)}, [str(data)], images.classes)[split]
    return targets.teacher_logits(targets.clean_rows()), targets.labels_N


def accuracy(reader: CacheReader, data: Path, split: str = "train") -> float:
    logits, labels = answers(reader, data, split)
    return float((logits.argmax(axis=1) == labels).mean())


def relabel(data: Path, path: Path, new_class: str) -> None:
    path.rename(data / "train" / new_class / f"relabelled-{path.name}")


def rows_of(reader: CacheReader, path: Path) -> slice:
    return reader.rows_of(int(reader.find([reader[path].key])[0]))


@pytest.mark.parametrize(("calibrate", "has_val"), [(False, True), (True, True), (True, False)])
def test_no_bit_of_an_images_targets_depends_on_its_label(
    calibrate: bool, has_val: bool, telling: Path, data: Path
) -> None:
    if not has_val:
        shutil.rmtree(data / "val")
    config = dataclasses.replace(CROSS, calibrate=calibrate)
    before = probed(telling, data, config)
    path = sorted((data / "train" / "melanoma").glob("*.png"))[2]
    key = before[path].key
    relabel(data, path, OTHER)
    after = probed(telling, data, config)
    rows = before.rows_of(int(before.find([key])[0]))
    every = slice(0, before.n_rows)
    assert rows.stop - rows.start == 3
    np.testing.assert_array_equal(before.logits(rows), after.logits(rows))
    changed = (before.logits(every) != after.logits(every)).any(axis=1)
    images = scan_data(data)
    train = before.find([sample.key for sample in images.of_split("train")])
    is_train = np.isin(before.sample_of_row, train)
    assert changed[~is_train].all()  # the head of all train images saw the other label
    assert changed[is_train].mean() == pytest.approx(2 / 3)  # and so did those of two of three folds
    assert before.recipe_id != after.recipe_id


def test_no_bit_of_a_groups_targets_depends_on_its_labels(telling: Path, data: Path, tmp_path: Path) -> None:
    paths = sorted((data / "train").glob("*/*.png"))
    table = ["image,patient"]
    table += [f"{path.relative_to(data).as_posix()},{number % 10}" for number, path in enumerate(paths)]
    (tmp_path / "patients.csv").write_text("\n".join(table))
    config = ProbeConfig(cross_fit="patient", csv=tmp_path / "patients.csv", folds=3)
    before = probed(telling, data, config)
    group = paths[4::10]
    keys = [before[path].key for path in group]
    classes = sorted(folder.name for folder in (data / "train").iterdir())
    text = (tmp_path / "patients.csv").read_text()
    for path in group:
        other = classes[(classes.index(path.parent.name) + 2) % 5]
        relabel(data, path, other)
        text = text.replace(path.relative_to(data).as_posix(), f"train/{other}/relabelled-{path.name}")
    (tmp_path / "patients.csv").write_text(text)
    after = probed(telling, data, config)
    for key in keys:
        rows = before.rows_of(int(before.find([key])[0]))
        np.testing.assert_array_equal(before.logits(rows), after.logits(rows))
    assert not np.array_equal(before.logits(slice(0, before.n_rows)), after.logits(slice(0, before.n_rows)))


def test_what_only_memory_can_tell_is_told_by_the_plain_probe_alone(noise: Path, tiny_data: Path) -> None:
    plain, cross_fitted = probed(noise, tiny_data, ProbeConfig(folds=3)), probed(noise, tiny_data)
    assert accuracy(plain, tiny_data) > 0.9
    assert accuracy(cross_fitted, tiny_data) < 0.45
    np.testing.assert_array_equal(*(answers(reader, tiny_data, "test")[0] for reader in (plain, cross_fitted)))


def test_what_the_embeddings_tell_is_told_of_images_not_seen(crossed: CacheReader, tiny_data: Path) -> None:
    assert accuracy(crossed, tiny_data) > 0.7
    assert accuracy(crossed, tiny_data, "test") > 0.7


@pytest.mark.parametrize("config", [ProbeConfig(), CROSS])
def test_seen_says_which_rows_come_from_a_head_that_was_fitted_on_them(
    config: ProbeConfig, telling: Path, tiny_data: Path
) -> None:
    reader = probed(telling, tiny_data, config)
    train = reader.find([sample.key for sample in scan_data(tiny_data).of_split("train")])
    expected = np.isin(reader.sample_of_row, train) & (config.cross_fit is None)
    np.testing.assert_array_equal(reader.feature(slice(0, reader.n_rows), SEEN), expected.astype(np.float16))


def test_seen_by_the_teacher_stays_seen(
    telling: Path, tiny_data: Path, resealed: Resealed, caplog: pytest.LogCaptureFixture
) -> None:
    def change(table: Table) -> Table:
        seen = (np.arange(len(table.view)) % 2).astype("<f2")
        return dataclasses.replace(table, features={**table.features, SEEN: seen})

    parent = resealed(telling, change, name="seen.h5")
    every = slice(0, 120)
    with caplog.at_level(logging.INFO):
        found = probed(parent, tiny_data)
    np.testing.assert_array_equal(found.feature(every, SEEN), np.arange(120) % 2)
    assert "train images come from a teacher that was fitted on them" in caplog.text
    assert "does not say whether its teacher was fitted" not in caplog.text
    plain = probed(parent, tiny_data, ProbeConfig()).feature(every, SEEN)
    np.testing.assert_array_equal(
        plain, np.maximum(probed(telling, tiny_data, ProbeConfig()).feature(every, SEEN), np.arange(120) % 2)
    )


def test_val_images_of_a_train_group_are_seen_and_told(
    telling: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [path.relative_to(tiny_data).as_posix() for path in sorted(tiny_data.glob("*/*/*.png"))]
    group = {name: str(number) for number, name in enumerate(names)}
    val = [name for name in names if name.startswith("val")][:2]
    train = [name for name in names if name.startswith("train")]
    group |= {val[0]: group[train[0]], val[1]: group[train[7]]}
    (tmp_path / "g.csv").write_text("name,case\n" + "".join(f"{name},{case}\n" for name, case in group.items()))
    config = ProbeConfig(cross_fit="case", csv=tmp_path / "g.csv", folds=3, calibrate=True)
    with caplog.at_level(logging.INFO):
        reader = probed(telling, tiny_data, config)
    assert "2 of 15 val images share their case with a train image" in caplog.text
    assert "on 13 val images" in caplog.text
    seen = np.flatnonzero(reader.feature(slice(0, 120), SEEN))
    assert seen.tolist() == sorted(rows_of(reader, tiny_data / name).start for name in val)


def test_the_classes_are_those_of_the_data(telling: Path, data: Path) -> None:
    for split in ("train", "val", "test"):
        (data / split / "melanoma").rename(data / split / "zebra")
        for path in (data / split / OTHER).iterdir():
            path.rename(data / split / "zebra" / f"too-{path.name}")
        (data / split / OTHER).rmdir()
    reader = probed(telling, data)
    assert reader.tasks == {"class": scan_data(data).classes["class"]}
    assert len(reader.tasks["class"]) == 4
    assert accuracy(reader, data, "test") > 0.7


def test_labels_of_val_and_test_change_no_bit(crossed: CacheReader, telling: Path, data: Path) -> None:
    before = crossed
    for split in ("val", "test"):
        (data / split / "melanoma").rename(data / split / "was")
        (data / split / OTHER).rename(data / split / "melanoma")
        (data / split / "was").rename(data / split / OTHER)
    after = probed(telling, data)
    assert (before.recipe_id, before.content_id) == (after.recipe_id, after.content_id)


def test_the_same_question_twice_has_the_same_answer_and_merges(
    crossed: CacheReader, telling: Path, tiny_data: Path, tmp_path: Path
) -> None:
    one, two = crossed, probed(telling, tiny_data)
    assert (one.recipe_id, one.content_id) == (two.recipe_id, two.content_id)
    assert merge([one.path, two.path], tmp_path / "merged.h5").content_id == one.content_id


@pytest.mark.parametrize(
    "change",
    [{"cross_fit": None}, {"folds": 4}, {"seed": 1}, {"calibrate": True}],
    ids=lambda change: next(iter(change)),
)
def test_another_question_is_another_recipe(
    change: dict[str, Any], crossed: CacheReader, telling: Path, tiny_data: Path
) -> None:
    one, other = crossed, probed(telling, tiny_data, dataclasses.replace(CROSS, **change))
    assert len({one.recipe_id, other.recipe_id, CacheReader(telling).recipe_id}) == 3


def test_a_probed_cache_says_what_it_is(telling: Path, tiny_data: Path) -> None:
    parent = CacheReader(telling)
    reader = probed(telling, tiny_data, dataclasses.replace(CROSS, calibrate=True))
    identity, stored = reader.manifest.identity, parent.manifest.identity
    assert derived_by(identity) == "probe"
    assert derived_by(stored) is None
    assert identity["teacher"]["parent_recipe_id"] == parent.recipe_id
    assert identity["teacher"]["weights_sha256"] == stored["teacher"]["weights_sha256"]
    assert "prompts" not in identity["teacher"]
    assert {name for name in identity if identity[name] != stored.get(name)} == {"teacher"}
    assert reader.manifest.provenance["teacher"] == parent.manifest.provenance["teacher"]
    assert reader.manifest.provenance["derived"]["parent_cache_id"] == parent.cache_id
    said = describe_cache_as_text(reader.path)
    assert "head        linear probe on the embeddings, train rows out of fold by image in 3 folds, calibrated" in said
    assert parent.recipe_id in said
    assert "prompt " not in said


def test_a_temperature_of_val_lowers_the_nll_of_val(telling: Path, tiny_data: Path) -> None:
    def nll(reader: CacheReader) -> float:
        logits, labels = answers(reader, tiny_data, "val")
        return float(-log_softmax(logits.astype(float), axis=1)[np.arange(len(labels)), labels].mean())

    plain, scaled = (probed(telling, tiny_data, ProbeConfig(calibrate=on)) for on in (False, True))
    temperature = float.fromhex(scaled.manifest.identity["teacher"]["probe"]["temperature"][0])
    assert nll(scaled) < nll(plain)
    every = slice(0, 120)
    np.testing.assert_allclose(scaled.logits(every) * temperature, plain.logits(every), rtol=1e-5, atol=1e-6)


def test_a_temperature_is_not_of_val_images_that_the_teacher_was_fitted_on(
    telling: Path, tiny_data: Path, resealed: Resealed, caplog: pytest.LogCaptureFixture
) -> None:
    val = [sample.key for sample in scan_data(tiny_data).of_split("val")]

    def known(n: int) -> Path:
        def change(table: Table) -> Table:
            seen = np.repeat([key.tobytes() in val[:n] for key in table.key], np.diff(table.first_row.astype(int)))
            return dataclasses.replace(table, features={**table.features, SEEN: seen.astype("<f2")})

        return resealed(telling, change, name=f"{n}.h5")

    with caplog.at_level(logging.INFO):
        for n in (10, 15):
            probed(known(n), tiny_data, ProbeConfig(calibrate=True), f"calibrated {n}")
    assert re.findall(r"on ([\w -]+) images: NLL", caplog.text) == ["5 val", "30 held-out train"]


def test_a_probed_cache_can_be_probed_again(crossed: CacheReader, telling: Path, tiny_data: Path) -> None:
    once = crossed
    again = probed(once.path, tiny_data)
    every = slice(0, 120)
    np.testing.assert_array_equal(once.logits(every), again.logits(every))
    assert again.manifest.identity["teacher"]["parent_recipe_id"] == once.recipe_id
    bare = probed(telling, tiny_data, dataclasses.replace(CROSS, embedding=False))
    assert list(bare.features) == [SEEN]
    with pytest.raises(CacheMismatch, match="holds no embeddings"):
        probed(bare.path, tiny_data)


@pytest.mark.parametrize("teacher", ["resnet50", None, {"kind": "mine", "prompts": 3}])
def test_the_embeddings_of_any_teacher_can_be_probed(
    teacher: Any, telling: Path, tiny_data: Path, resealed: Resealed
) -> None:
    foreign = resealed(telling, identity={"teacher": teacher}, name="foreign.h5")
    reader = probed(foreign, tiny_data)
    assert derived_by(reader.manifest.identity) == "probe"
    assert "linear probe" in describe_cache_as_text(reader.path)


def test_a_student_learns_from_a_probed_cache(crossed: CacheReader, tiny_data: Path, tmp_path: Path) -> None:
    config = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=1, batch_size=16)
    assert train(tiny_data, crossed.path, tmp_path / "run", config, workers=0).best_epoch == 1


def test_an_image_that_a_derived_cache_lacks_is_added_to_its_parent(crossed: CacheReader, data: Path) -> None:
    path = next(data.glob("train/melanoma/*.png"))
    path.with_name("new.png").write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CacheMismatch) as caught:
        join(crossed, {"train": scan_data(data).of_split("train")}, [str(data)], scan_data(data).classes)
    assert "extend that one by `softlabel cache build" in str(caught.value)
    assert "PARENT.h5` with the settings it was built with, then probe it again" in str(caught.value)


def test_a_teacher_is_not_asked_again_for_what_it_did_not_say(
    crossed: CacheReader, tiny_data: Path, tiny_teacher: Path
) -> None:
    with pytest.raises(CacheMismatch, match=r"made by `softlabel cache probe` .*: verify that one with DATA"):
        recompute_rows(crossed.path, tiny_data, str(tiny_teacher), device="cpu", workers=0)


def test_an_image_in_two_classes_counts_once(telling: Path, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = sorted((data / "train" / "melanoma").glob("*.png"))[0]
    shutil.copy(path, data / "train" / OTHER / "twin.png")
    options = ScanOptions(allow_duplicates=True)
    with caplog.at_level(logging.INFO):
        probe_cache(telling, data, telling.with_name("twin.h5"), CROSS, options)
    assert "1 train images stand in two classes: the first one by name counts" in caplog.text
    (data / "train" / "melanoma" / path.name).unlink()
    alone = probed(telling, data)
    every = slice(0, 120)
    np.testing.assert_array_equal(CacheReader(telling.with_name("twin.h5")).logits(every), alone.logits(every))


def test_images_that_are_not_in_the_data_are_labelled_and_counted(
    telling: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(data / "test")
    with caplog.at_level(logging.INFO):
        reader = probed(telling, data)
    assert "15 images of the cache are not in the data: the head of all train images labels them" in caplog.text
    assert (reader.n_rows, reader.n_samples) == (120, 60)
    assert "the cache does not say whether its teacher was fitted on these images" in caplog.text


def test_a_class_that_a_fold_takes_away_is_named(telling: Path, data: Path) -> None:
    for path in sorted((data / "train" / "melanoma").glob("*.png"))[2:]:
        path.unlink()
    said = r"too few train images of melanoma \([01]\) outside of fold \d of 3 \(try another --seed or fewer --folds\)"
    with pytest.raises(BadSamples, match=said):
        probed(telling, data)
    assert isinstance(probe_cache(telling, data, telling.with_name("plain.h5"), ProbeConfig()), ProbeResult)
