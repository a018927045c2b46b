"""Every kind of teacher comes through the same door, builds a cache, and teaches a student."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torchvision.models import shufflenet_v2_x0_5

from cache import CacheReader
from data.samples import FOLDER_TASK
from data.scan import scan_data
from pipeline.build import BuildConfig, build_cache
from pipeline.errors import RunError, SettingError, TeacherError
from pipeline.export import export
from pipeline.recompute import recompute_rows
from pipeline.targets import SEEN
from pipeline.teachers.description import TeacherDescription, read_description
from pipeline.teachers.loading import open_teacher
from pipeline.teachers.prompts import PromptSource
from pipeline.teachers.teacher import Teacher
from pipeline.train import TrainConfig, train

from . import other_teachers as make

TRAIN = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=1, batch_size=8)
SMALL_TIMM = "test_vit"


@pytest.fixture(scope="session")
def classes(tiny_data: Path) -> tuple[str, ...]:
    return scan_data(tiny_data).classes[FOLDER_TASK]


@pytest.fixture(scope="session")
def teachers(
    classes: tuple[str, ...], tiny_run: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, object]]:
    """Kind -> what a BuildConfig says of it."""
    folder, n = tmp_path_factory.mktemp("kinds"), len(classes)
    torch.manual_seed(1)
    resnet = make.save_state_dict(folder / "shuffle.pt", shufflenet_v2_x0_5(num_classes=n))
    vit = make.save_state_dict(folder / "vit.pt", timm.create_model(SMALL_TIMM, num_classes=n))
    small = make.write_description(folder / "small.yaml", size_px=32)
    reversed_names = make.write_description(folder / "names.yaml", size_px=32, classes=list(reversed(classes)))
    export(tiny_run, folder / "student.pt")
    return {
        "siglip": {"teacher": str(tiny_teacher)},
        "clip": {"teacher": str(make.save_clip(folder / "clip"))},
        "transformers": {"teacher": str(make.save_transformers_classifier(folder / "hf", list(classes), n))},
        "torchvision": {"teacher": f"torchvision:shufflenet_v2_x0_5:{resnet}", "teacher_config": small},
        "timm": {"teacher": f"timm:{SMALL_TIMM}:{vit}"},
        "torchscript": {
            "teacher": str(make.save_torchscript(folder / "net.pt", n)), "teacher_config": reversed_names,
        },
        "exported student": {"teacher": str(folder / "student.pt")},
        "student": {"teacher": str(tiny_run)},
    }  # fmt: skip


KINDS = ("clip", "transformers", "torchvision", "timm", "torchscript", "exported student", "student")


def opened(teachers: dict[str, dict[str, object]], kind: str, classes: tuple[str, ...], **options: object) -> Teacher:
    config = teachers[kind]
    file = config.get("teacher_config")
    described = read_description(Path(str(file))) if file else TeacherDescription()
    settings = {"device": "cpu", "precision": "fp32", "description": described, **options}
    return open_teacher(str(config["teacher"]), classes, PromptSource(), **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_of_every_kind_builds_a_cache_and_trains_a_student(
    kind: str, teachers: dict[str, dict[str, object]], few_images: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_build, views=2, batch_size=16, **teachers[kind])
    out = build_cache(few_images, tmp_path / "t.h5", config).path
    reader = CacheReader(out)
    assert reader.logits(slice(None)).std() > 0, "a teacher that answers every image alike would make this test blind"
    assert ("embedding" in reader.features) == ("torchscript" not in kind and kind != "exported student")
    teacher = str(teachers[kind]["teacher"])
    assert recompute_rows(out, few_images, teacher, n_rows=6, device="cpu", workers=0).worst_logit <= 1e-4
    assert teacher not in str(reader.manifest.provenance), "a path may name a person"
    assert train(few_images, out, tmp_path / "run", TRAIN, workers=0, anyway=True).best_epoch == 1


@pytest.mark.parametrize("kind", ["transformers", "torchvision", "timm", "student"])
def test_tower_and_linear_head_together_say_what_the_whole_classifier_says(
    kind: str, teachers: dict[str, dict[str, object]], classes: tuple[str, ...]
) -> None:
    teacher = opened(teachers, kind, classes)
    assert teacher.has_embedding
    pixels = torch.randint(0, 256, (3, 3, teacher.size_px, teacher.size_px), dtype=torch.uint8)
    embedding = teacher.embed(pixels)
    assert embedding.shape == (3, teacher.head.input_size)
    again = teacher.head.logits(embedding)
    assert again.shape == (3, len(classes))
    assert np.isfinite(again).all()


def test_the_columns_of_a_classifier_are_put_into_sorted_order_by_name(
    teachers: dict[str, dict[str, object]], classes: tuple[str, ...], tmp_path: Path
) -> None:
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    names_reversed = opened(teachers, "torchscript", classes)
    as_sorted = opened(teachers, "torchscript", classes, description=TeacherDescription(size_px=32))
    assert names_reversed.classes == as_sorted.classes == tuple(sorted(classes))
    left, right = (t.head.logits(t.embed(pixels)) for t in (names_reversed, as_sorted))
    np.testing.assert_array_equal(left, right[:, ::-1])
    assert names_reversed.identity != as_sorted.identity


def test_outputs_without_names_are_taken_for_the_sorted_classes_and_said_so(
    classes: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make.save_transformers_classifier(tmp_path / "hf", None, len(classes))
    with caplog.at_level(logging.INFO):
        teacher = open_teacher(str(folder), classes, PromptSource(), device="cpu", precision="fp32")
    assert teacher.classes == tuple(sorted(classes))
    assert "does not name its outputs: taken for " in caplog.text


def test_a_teacher_of_other_classes_is_kept_for_its_embeddings_with_a_warning(
    few_images: Path, tiny_build: BuildConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make.save_transformers_classifier(tmp_path / "hf", ["crane", "crane", "tench"], 3)
    config = dataclasses.replace(tiny_build, views=1, batch_size=16, teacher=str(folder))
    reader = CacheReader(build_cache(few_images, tmp_path / "t.h5", config).path)
    assert reader.tasks[FOLDER_TASK] == ("crane", "crane (2)", "tench")
    assert "does not know 5 of the 5 classes" in caplog.text
    assert "softlabel cache probe" in caplog.text
    again = recompute_rows(tmp_path / "t.h5", few_images, str(folder), n_rows=3, device="cpu", workers=0)
    assert again.worst_logit <= 1e-4, "no label is needed to ask it again"
    with pytest.raises(TeacherError, match=r"does not know 5 of the 5 classes .* --teacher-config"):
        build_cache(few_images, tmp_path / "u.h5", dataclasses.replace(config, embedding=False))


def test_a_checkpoint_whose_classifier_would_be_random_is_refused(classes: tuple[str, ...], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make.save_transformers_classifier(tmp_path / "hf", list(classes), len(classes))
    weights = load_file(folder / "model.safetensors")
    save_file(
        {n: w for n, w in weights.items() if "classifier" not in n}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(TeacherError, match="lacks 2 weights, which would be random"):
        open_teacher(str(folder), classes, PromptSource(), device="cpu", precision="fp32")


def test_clip_logits_equal_logits_per_image_of_the_whole_model(
    teachers: dict[str, dict[str, object]], classes: tuple[str, ...]
) -> None:
    from transformers import AutoModel, AutoTokenizer

    source = str(teachers["clip"]["teacher"])
    model, tokenizer = AutoModel.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    tokens = tokenizer(list(classes), padding="max_length", max_length=77, return_tensors="pt")
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    teacher = opened(teachers, "clip", classes)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (teacher.mean, teacher.std))
    with torch.inference_mode():
        expected = model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"],
            pixel_values=(pixels.float() / 255 - mean) / std,
        ).logits_per_image.numpy()  # fmt: skip
    found = teacher.head.logits(teacher.embed(pixels))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    assert found.std(axis=1).min() > 0.01


def test_rows_of_images_that_the_teacher_was_fitted_on_are_marked_as_seen(
    few_images: Path, tiny_teacher: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    learned = {sample.key for sample in scan_data(few_images).of_split("train")[:4]}
    (folder / "fitted_on.json").write_text(json.dumps({"format": 1, "keys": [key.hex() for key in learned]}))
    config = dataclasses.replace(tiny_build, teacher=str(folder))
    reader = CacheReader(build_cache(few_images, tmp_path / "t.h5", config).path)
    seen = reader.feature(slice(None), SEEN).astype(bool)
    assert {key for key, marked in zip(keys_of_rows(reader), seen, strict=True) if marked} == learned
    assert reader.recipe_id == CacheReader(build_cache(few_images, tmp_path / "u.h5", tiny_build).path).recipe_id
    with pytest.raises(SettingError, match=r"have the features embedding, seen, this teacher's would have embedding"):
        build_cache(few_images, tmp_path / "t.h5", dataclasses.replace(tiny_build, views=4))
    (folder / "fitted_on.json").write_text("{}")
    with pytest.raises(TeacherError, match="is damaged"):
        build_cache(few_images, tmp_path / "v.h5", config)


def test_rows_of_images_that_a_student_learned_from_are_marked_as_seen_when_it_teaches(
    tiny_data: Path, tiny_run: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_build, teacher=str(tiny_run), views=1, batch_size=16)
    reader = CacheReader(build_cache(tiny_data, tmp_path / "t.h5", config).path)
    seen = reader.feature(slice(None), SEEN).astype(bool)
    learned = {sample.key for sample in scan_data(tiny_data).of_split("train")}
    assert {key for key, marked in zip(keys_of_rows(reader), seen, strict=True) if marked} == learned


def test_embeddings_that_float16_cannot_hold_are_told_with_the_way_out(
    few_images: Path, tiny_build: BuildConfig, classes: tuple[str, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = shufflenet_v2_x0_5(num_classes=len(classes))
    with torch.no_grad():
        model.conv5[1].bias.add_(1e5)
    path = make.save_state_dict(tmp_path / "large.pt", model)
    described = make.write_description(tmp_path / "small.yaml", size_px=32)
    config = dataclasses.replace(
        tiny_build, teacher=f"torchvision:shufflenet_v2_x0_5:{path}", teacher_config=described, views=1
    )
    with pytest.raises(TeacherError, match=r"numbers up to 1e\+05, float16 ends at 65,504: build with --no-embedding"):
        build_cache(few_images, tmp_path / "t.h5", config)
    assert build_cache(few_images, tmp_path / "t.h5", dataclasses.replace(config, embedding=False)).n_rows == 25


def test_a_run_that_was_interrupted_is_no_teacher_yet(tiny_run: Path, classes: tuple[str, ...], tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    last = torch.load(run / "last.pt", weights_only=True)
    torch.save({**last, "epoch": 1}, run / "last.pt")
    with pytest.raises(RunError, match=r"stopped after epoch 1 of 2: go on with it by .* --resume"):
        open_teacher(str(run), classes, PromptSource(), device="cpu", precision="fp32")
    (run / "last.pt").unlink()
    assert open_teacher(str(run), classes, PromptSource(), device="cpu", precision="fp32").classes == classes


def keys_of_rows(reader: CacheReader) -> list[bytes]:
    return [bytes(reader.keys[owner]) for owner in reader.sample_of_row]


MISTAKES: dict[str, tuple[str, type[Exception], str]] = {
    "an unknown torchvision name": ("torchvision:resnet5", SettingError, "did you mean 'resnet50'"),
    "unknown weights": ("torchvision:resnet18:IMAGENET", SettingError, "torchvision offers: IMAGENET1K_V1"),
    "an unknown timm name": ("timm:test_vitt", SettingError, "no timm model is called 'test_vitt'; did you mean"),
    "a timm file that is not there": ("timm:test_vit:no.pt", SettingError, "no such weights file: no.pt"),
    "a file that is no model": ("TEXT", RunError, "is not an exported model"),
    "no such thing": ("no/such/thing", TeacherError, "no such teacher folder or file: no/such/thing"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_naming_a_teacher_is_told(mistake: str, classes: tuple[str, ...], tmp_path: Path) -> None:
    source, error, message = MISTAKES[mistake]
    text = tmp_path / "text.pt"
    text.write_text("no model")
    with pytest.raises(error, match=message):
        open_teacher(source.replace("TEXT", str(text)), classes, PromptSource(), device="cpu", precision="fp32")


def test_outputs_that_are_too_many_and_weights_that_do_not_fit_are_told(
    teachers: dict[str, dict[str, object]], classes: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(TeacherError, match=r"has 5 outputs and does not name them, the images have 3 classes"):
        opened(teachers, "torchscript", classes[:3], description=TeacherDescription(size_px=32))
    with pytest.raises(TeacherError, match="has 5 outputs, but 2 class names are given"):
        opened(teachers, "torchscript", classes, description=TeacherDescription(size_px=32, classes=("a", "b")))
    with pytest.raises(TeacherError, match="does not fit"):
        opened(teachers, "torchvision", classes[:4])
    source = str(teachers["torchvision"]["teacher"]).replace("shuffle.pt", "small.yaml")
    with pytest.raises(TeacherError, match="no weights that can be loaded safely"):
        open_teacher(source, classes, PromptSource(), device="cpu", precision="fp32")


def test_prompts_for_a_classifier_and_a_description_for_a_dual_encoder_are_refused(
    teachers: dict[str, dict[str, object]], classes: tuple[str, ...]
) -> None:
    source = str(teachers["timm"]["teacher"])
    with pytest.raises(SettingError, match="is a classifier, which reads no prompts"):
        open_teacher(source, classes, PromptSource(templates=("a {}",)), device="cpu", precision="fp32")
    with pytest.raises(SettingError, match="describes itself"):
        opened(teachers, "siglip", classes, description=TeacherDescription(size_px=32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sizepx: 3", "unknown key 'sizepx'; did you mean 'size_px'"),
        ("size_px: big", "invalid literal"),
        ("mean: [1, 2]", "mean must be three numbers"),
        ("std: [1, 0, 1]", "std must be three numbers over 0"),
        ("classes: [a, a]", "each once"),
        ("classes: a", "list of names"),
        ('classes: ["\\ud800", a]', "a class needs a name that is text"),
        ('classes: ["", a]', "a class needs a name that is text"),
        ("mean: [123.7, 116.3, 103.5]", "not of levels in 0..255"),
        ("mean: [nan, 0, 0]", "not of levels in 0..255"),
        ("std: [inf, 1, 1]", "not of levels in 0..255"),
        ("[" * 3000, "is not YAML"),
        ("- a", "must be a mapping"),
        ("{", "is not YAML"),
    ],
)
def test_a_description_that_cannot_be_read_is_told(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "teacher.yaml"
    path.write_text(content)
    with pytest.raises(SettingError, match=message):
        read_description(path)


def test_a_teacher_without_a_network_says_where_its_weights_belong(
    classes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(host: str) -> None:
        raise ConnectionError(f"no network connection to {host}")

    for place in ("teachers.classifiers", "students.pretrained"):
        monkeypatch.setattr(f"pipeline.{place}.check_network", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(TeacherError, match=r"no network connection .* put https://download.pytorch.org/.* at "):
        open_teacher("torchvision:resnet18", classes, PromptSource(), device="cpu", precision="fp32")
    with pytest.raises(TeacherError, match=r"pass a file: timm:test_vit\.r160_in1k:FILE"):
        open_teacher("timm:test_vit.r160_in1k", classes, PromptSource(), device="cpu", precision="fp32")


CliRun = Callable[..., tuple[int, str, str]]


def test_the_command_line_builds_from_a_run_and_names_its_mistakes(
    cli: CliRun, few_images: Path, tiny_run: Path, tmp_path: Path
) -> None:
    build = ("cache", "build", few_images, "-o", tmp_path / "t.h5", "--views", 1, "--teacher")
    code, out, err = cli(*build, tiny_run)
    assert code == 0, err
    assert "25 views of 25 images" in out
    code, out, err = cli(*build, "torchvision:resnet5")
    assert (code, out) == (1, "")
    assert err.startswith("Error: no torchvision classifier is called 'resnet5'")
