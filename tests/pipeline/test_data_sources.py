"""Data sets as teams have them, from raw files to an evaluated student: every command, as typed."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache import CacheReader
from data.scan import scan_data
from pipeline.card import StudentCard
from pipeline.demo.lesions import CLASSES, write_lesions

Cli = Callable[..., tuple[int, str, str]]
LESIONS = sorted(CLASSES)
HAM_CODES = ("bcc", "nv", "mel", "bkl", "vasc")
ISIC_CODES = ("BCC", "NV", "MEL", "BKL", "VASC")
COURSE_FOLDERS = (
    "4. Basal Cell Carcinoma (BCC) 3323", "5. Melanocytic Nevi (NV) - 7970", "2. Melanoma 15.75k",
    "10. Warts Molluscum and other Viral Infections - 2103", "1. Eczema 1677",
)  # fmt: skip
PER_CLASS = 10


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Kind of lesion -> its images; the data sets call the kinds by names of their own."""
    root = tmp_path_factory.mktemp("pictures") / "images"
    write_lesions(root, {"train": PER_CLASS}, size_px=48, seed=5)
    return {kind: sorted((root / "train" / kind).iterdir()) for kind in LESIONS}


def write_table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def as_jpeg(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.open(source).save(target, quality=95)


@pytest.fixture
def student_of(cli: Cli, tiny_teacher: Path, tmp_path: Path) -> Callable[..., dict[str, object]]:
    """Build, train and evaluate by the command line; what `evaluate` measured."""

    def run(*data: object, build: Sequence[object] = ()) -> dict[str, object]:
        teacher = ("--teacher", tiny_teacher, "--views", 2, "--precision", "fp32", "--workers", 0, *build)
        student = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--epochs", 1, "--batch-size", 8)
        for words in (
            ("cache", "build", *data, "-o", tmp_path / "t.h5", *teacher),
            ("train", *data[:1], tmp_path / "t.h5", *data[1:], "-o", tmp_path / "run", *student, "--anyway"),
            ("evaluate", tmp_path / "run", *data, "--split", "test", "--json", tmp_path / "scores.json"),
        ):
            code, _, said = cli(*words)
            assert code == 0, said
        return dict(json.loads((tmp_path / "scores.json").read_text()))

    return run


def card_of(run: Path) -> StudentCard:
    from pipeline.runs import RunFolder

    return RunFolder(run).load_best().card


def test_the_official_ham10000_csv_with_its_images_in_two_folders(
    pictures: dict[str, list[Path]], student_of: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    rows: list[dict[str, object]] = []
    for kind, code in zip(LESIONS, HAM_CODES, strict=True):
        for number, picture in enumerate(pictures[kind]):
            image = f"ISIC_{len(rows):07}"
            as_jpeg(picture, tmp_path / "ham" / f"HAM10000_images_part_{1 + len(rows) % 2}" / f"{image}.jpg")
            lesion = f"HAM_{code}_{number // 2}"  # two images of each lesion
            rows.append({"lesion_id": lesion, "image_id": image, "dx": code, "dx_type": "histo", "age": 50.0,
                         "sex": "female", "localization": "back"})  # fmt: skip
    write_table(tmp_path / "ham" / "HAM10000_metadata.csv", rows)
    data = (
        tmp_path / "ham", "--csv", "HAM10000_metadata.csv", "--image-column", "image_id", "--label-column", "dx",
        "--group-column", "lesion_id", "--image-dir", "HAM10000_images_part_1", "--image-dir", "HAM10000_images_part_2",
    )  # fmt: skip
    scores = student_of(*data)
    assert scores["classes"] == sorted(HAM_CODES)
    assert CacheReader(tmp_path / "t.h5").tasks == {"class": tuple(sorted(HAM_CODES))}
    with (tmp_path / "ham" / "HAM10000_metadata.splits.csv").open(encoding="utf-8") as file:
        split_of = {row["path"]: row["split"] for row in csv.DictReader(file)}
    sides: dict[object, set[str]] = {}
    for row in rows:
        where = {split for path, split in split_of.items() if Path(path).stem == row["image_id"]}
        sides.setdefault(row["lesion_id"], set()).update(where)
    assert all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) == {"train", "val", "test"}


def test_an_isic_one_hot_csv(
    pictures: dict[str, list[Path]], student_of: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    rows: list[dict[str, object]] = []
    for kind, code in zip(LESIONS, ISIC_CODES, strict=True):
        for picture in pictures[kind]:
            image = f"ISIC_{len(rows):07}"
            as_jpeg(picture, tmp_path / "isic" / "ISIC2018_Task3_Training_Input" / f"{image}.jpg")
            rows.append({"image": image, **{one: float(one == code) for one in ISIC_CODES}})
    write_table(tmp_path / "isic" / "ISIC2018_Task3_Training_GroundTruth.csv", rows)
    scores = student_of(tmp_path / "isic" / "ISIC2018_Task3_Training_GroundTruth.csv")
    assert scores["classes"] == sorted(ISIC_CODES)
    assert card_of(tmp_path / "run").tasks == {"class": tuple(sorted(ISIC_CODES))}


def test_the_folders_of_the_course(
    pictures: dict[str, list[Path]], student_of: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    suffixes = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".jfif")
    root = tmp_path / "training_dataset" / "train_dataset"
    for kind, folder in zip(LESIONS, COURSE_FOLDERS, strict=True):
        (root / folder).mkdir(parents=True)
        for number, picture in enumerate(pictures[kind]):
            suffix = suffixes[number % len(suffixes)]
            kinds = {".jfif": "JPEG"}
            Image.open(picture).save(root / folder / f"{number}{suffix}", kinds.get(suffix))
    scores = student_of(root)
    assert scores["classes"] == sorted(COURSE_FOLDERS), "as the course server numbers them: 1, 10, 2, ..."


def two_task_table(pictures: dict[str, list[Path]], root: Path) -> Path:
    """`kind` of five classes and `size` of two; one image in ten has no size, one has no label at all."""
    rows: list[dict[str, object]] = []
    for kind in LESIONS:
        for number, picture in enumerate(pictures[kind]):
            file = f"{kind.replace(' ', '-')}/{number}.png"
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, root / file)
            split = ("train", "train", "train", "train", "train", "train", "dev", "dev", "test", "test")[number]
            size = "" if number == 4 else ("large", "small")[int(np.asarray(Image.open(picture)).mean() < 165)]
            rows.append({"file": file, "kind": kind, "size": size, "patient": f"{kind}-{number}", "part": split})
    rows[0] |= {"kind": "", "size": ""}
    write_table(root / "labels.csv", rows)
    return root / "labels.csv"


def test_a_csv_of_two_tasks(
    pictures: dict[str, list[Path]], student_of: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    table = two_task_table(pictures, tmp_path / "two")
    data = (
        table, "--image-column", "file", "--label-column", "kind,size", "--group-column", "patient",
        "--split-column", "part",
    )  # fmt: skip
    prompts = tmp_path / "prompts.yaml"
    kinds = "".join(f"  {kind}: {kind}\n" for kind in LESIONS)
    prompts.write_text(f"kind:\n{kinds}size:\n  large: large spot\n  small: small spot\n")
    scores = student_of(*data, build=("--prompts", prompts))
    tasks = {"kind": tuple(LESIONS), "size": ("large", "small")}
    assert CacheReader(tmp_path / "t.h5").tasks == tasks
    assert card_of(tmp_path / "run").tasks == tasks
    of_task = scores["tasks"]
    assert isinstance(of_task, dict)
    assert {task: found["splits"]["test"]["student"]["n_samples"] for task, found in of_task.items()} == {
        "kind": 10, "size": 10,
    }  # fmt: skip
    with (tmp_path / "run" / "metrics.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    mean = (float(row["kind/val_macro_f1"]) + float(row["size/val_macro_f1"])) / 2
    assert float(row["val_macro_f1"]) == pytest.approx(mean)
    assert float(row["kind/loss_soft"]) != float(row["size/loss_soft"])


def test_a_renamed_reordered_subset_and_extended_copy_trains_from_the_same_cache(
    cli: Cli, tiny_data: Path, tiny_cache: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """Joined by content: and what is not in the cache is said, with the command that adds it and nothing else."""
    copy = tmp_path / "copy of images"
    for number, path in enumerate(sorted(tiny_data.rglob("*.png"), reverse=True)):
        split, kind = path.parts[-3:-1]
        if number % 5:  # a subset
            target = copy / {"val": "dev"}.get(split, split) / kind / f"picture {number:03}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    student = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--epochs", 1, "--batch-size", 8)
    code, _, said = cli("train", copy, tiny_cache, "-o", tmp_path / "subset", *student)
    assert code == 0, said
    write_lesions(tmp_path / "more", {"train": 1}, size_px=48, seed=99)
    for path in (tmp_path / "more").rglob("*.png"):
        shutil.copy(path, copy / "train" / path.parent.name / "new.png")
    n_train = len(scan_data(copy).of_split("train"))
    code, _, said = cli("train", copy, tiny_cache, "-o", tmp_path / "extended", *student)
    assert code == 1
    assert f"lacks 5 of {len(scan_data(copy).samples) - len(scan_data(copy).of_split('test'))} images" in said
    assert f"softlabel cache build '{copy}' -o {tiny_cache}" in said
    cache = shutil.copy(tiny_cache, tmp_path / "t.h5")
    build = ("--teacher", tiny_teacher, "--views", 3, "--precision", "fp32", "--workers", 0)
    code, out, said = cli("cache", "build", copy, "-o", cache, *build)
    assert code == 0, said
    assert "(15 computed now" in out, "five new images of three views each"
    code, _, said = cli("train", copy, cache, "-o", tmp_path / "extended", *student)
    assert code == 0, said
    assert f"images   {n_train} train" in said


def test_scores_of_two_tasks_are_imported_with_a_column_for_each_class(
    cli: Cli, pictures: dict[str, list[Path]], tmp_path: Path
) -> None:
    table = two_task_table(pictures, tmp_path / "two")
    data = (table, "--image-column", "file", "--label-column", "kind,size", "--split-column", "part")
    columns = [*(f"kind: {kind}" for kind in LESIONS), "size: large", "size: small"]
    with table.open(encoding="utf-8") as file:
        images = [row["file"] for row in csv.DictReader(file)]
    rows = [{"image": image, **dict.fromkeys(columns[:5], 0.2), columns[5]: 0.9, columns[6]: 0.1} for image in images]
    write_table(tmp_path / "scores.csv", rows)
    words = ("cache", "import", tmp_path / "scores.csv", *data, "--as", "probabilities", "--views", 1, "--workers", 0)
    code, _, said = cli(*words, "-o", tmp_path / "t.h5")
    assert code == 0, said
    reader = CacheReader(tmp_path / "t.h5")
    assert reader.tasks == {"kind": tuple(LESIONS), "size": ("large", "small")}
    np.testing.assert_allclose(np.exp(reader.logits(slice(0, 2), "size")), [[0.9, 0.1]] * 2, rtol=1e-6)
    write_table(tmp_path / "scores.csv", [{**row, columns[6]: 0.2} for row in rows])
    code, _, said = cli(*words, "-o", tmp_path / "other.h5")
    assert code == 1
    assert "50 of 50 rows" in said
    assert "sums to 1.1" in said


def test_a_student_of_some_classes_learns_them_alone_from_the_cache_of_all(
    cli: Cli, tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    kept = ("melanoma", "vascular lesion")
    student = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--epochs", 1, "--batch-size", 4, "--anyway")
    only = ("--only", "melanoma,vascular lesion")
    code, _, said = cli("train", tiny_data, tiny_cache, "-o", tmp_path / "run", *student, *only)
    assert code == 0, said
    assert card_of(tmp_path / "run").tasks == {"class": kept}
    code, _, said = cli("evaluate", tmp_path / "run", tiny_data, "--split", "test")
    assert code == 1
    assert "--only 'melanoma,vascular lesion' asks it about those that it knows" in said
    code, out, said = cli("evaluate", tmp_path / "run", tiny_data, "--split", "test", *only)
    assert code == 0, said
    assert "agreement" in out, "the teacher's answers are those to these classes"


def test_train_images_with_fewer_views_than_others_are_said(
    cli: Cli, tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    """As after another split than the cache's: what was validation has its clean view alone."""
    copy = shutil.copytree(tiny_data, tmp_path / "copy")
    moved = next(copy.glob("val/melanoma/*.png"))
    moved.rename(copy / "train" / "melanoma" / "moved.png")
    student = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--epochs", 1, "--batch-size", 8)
    code, _, said = cli("train", copy, tiny_cache, "-o", tmp_path / "run", *student)
    assert code == 0, said
    assert "1 train images have fewer cached views than the others" in said
    code, _, said = cli("train", tiny_data, tiny_cache, "-o", tmp_path / "plain", *student)
    assert code == 0, said
    assert "fewer cached views" not in said
