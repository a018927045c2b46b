"""The SigLIP teacher: its logits are the model's own, its identity is its weights and texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

from data.views import CLEAN_ROW, render
from pipeline.errors import TeacherError
from pipeline.teachers.loading import open_teacher
from pipeline.teachers.prompts import Prompts
from pipeline.teachers.teacher import Teacher, resolve_precision

from .other_teachers import save_clip


def load(folder: Path, prompts: Prompts, precision: str = "fp32") -> Teacher:
    return open_teacher(str(folder), list(prompts), prompts, device="cpu", precision=precision)


def noise(n: int, size_px: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size_px, size_px), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_logits_equal_logits_per_image_of_the_whole_model(tiny_teacher: Path, prompts: Prompts) -> None:
    model = AutoModel.from_pretrained(tiny_teacher, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(tiny_teacher, local_files_only=True)
    texts = [text for texts in prompts.values() for text in texts]
    tokens = processor.tokenizer(texts, padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
    pixels = noise(5)
    with torch.inference_mode():
        expected = model(input_ids=tokens, pixel_values=pixels.float() / 127.5 - 1).logits_per_image.numpy()
    teacher = load(tiny_teacher, prompts)
    found = teacher.head.logits(teacher.embed(pixels))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert found.std() > 0.05, "a teacher that answers every image alike would make this test blind"


def test_several_prompts_of_a_class_are_normalised_averaged_and_normalised(
    tiny_teacher: Path, prompts: Prompts
) -> None:
    both = {name: (*texts, "a photo of " + texts[0]) for name, texts in prompts.items()}
    single = [load(tiny_teacher, {n: (t[i],) for n, t in both.items()}).head.text_CD for i in (0, 1)]
    expected = sum(single)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(load(tiny_teacher, both).head.text_CD, expected, atol=1e-6)


def test_a_row_does_not_depend_on_its_neighbours_or_on_the_thread_count(tiny_teacher: Path, prompts: Prompts) -> None:
    teacher, pixels = load(tiny_teacher, prompts), noise(8)
    together = teacher.head.logits(teacher.embed(pixels))
    moved = teacher.head.logits(teacher.embed(pixels.flip(0)))[::-1]
    np.testing.assert_array_equal(together, moved)
    torch.set_num_threads(2)
    try:
        np.testing.assert_array_equal(teacher.head.logits(teacher.embed(pixels)), together)
    finally:
        torch.set_num_threads(1)


def test_the_identity_knows_weights_and_prompts_but_not_the_path(
    tiny_teacher: Path, prompts: Prompts, tmp_path: Path
) -> None:
    here = load(tiny_teacher, prompts).identity
    moved = shutil.copytree(tiny_teacher, tmp_path / "elsewhere")
    assert load(moved, prompts).identity == here
    others = {name: (f"skin with {texts[0]}",) for name, texts in prompts.items()}
    changed = load(tiny_teacher, others).identity
    assert changed["prompt_tokens_sha256"] != here["prompt_tokens_sha256"]
    model = AutoModel.from_pretrained(tiny_teacher, local_files_only=True)
    with torch.no_grad():
        model.vision_model.post_layernorm.bias[0] += 1e-3
    model.save_pretrained(moved)
    assert load(moved, prompts).identity["weights_sha256"] != here["weights_sha256"]


def test_half_precision_stays_near_fp32(tiny_teacher: Path, prompts: Prompts) -> None:
    exact = load(tiny_teacher, prompts)
    half = load(tiny_teacher, prompts, "bf16")
    difference = half.head.logits(half.embed(noise(6))) - exact.head.logits(exact.embed(noise(6)))
    assert 0 < np.abs(difference).max() < 1.0


def test_rows_that_are_not_finite_are_refused_with_the_remedy(tiny_teacher: Path, prompts: Prompts) -> None:
    teacher = load(tiny_teacher, prompts)
    with torch.no_grad():
        teacher._tower.vision.post_layernorm.bias.fill_(float("nan"))
    with pytest.raises(TeacherError, match="--precision fp32"):
        teacher.embed(noise(2))


def test_auto_precision_is_resolved_by_device() -> None:
    assert resolve_precision("auto", "cuda") == "fp16"
    assert resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("bf16", "cuda") == "bf16"


def test_a_folder_that_holds_no_teacher_is_refused(tmp_path: Path, prompts: Prompts) -> None:
    with pytest.raises(TeacherError, match="is not a SigLIP or CLIP model"):
        load(tmp_path, prompts)
    with pytest.raises(TeacherError, match="no such teacher folder"):
        load(tmp_path / "nothing", prompts)


def test_the_teacher_sees_the_pixels_that_its_own_processor_makes_but_for_the_resize(
    tiny_teacher: Path, prompts: Prompts
) -> None:
    processor = AutoProcessor.from_pretrained(tiny_teacher, local_files_only=True).image_processor
    image = noise(1, 32)[0]
    theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
    teacher = load(tiny_teacher, prompts)
    ours = (render(image, CLEAN_ROW, 32).float() / 255 - teacher._mean_3[0]) / teacher._std_3[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_checkpoint_that_lacks_weights_is_refused(tiny_teacher: Path, prompts: Prompts, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_teacher, tmp_path / "teacher")
    weights = load_file(broken / "model.safetensors")
    del weights["vision_model.head.probe"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match=r"lacks 1 weights, which would be random \(first: vision_"):
        load(broken, prompts)
    (broken / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(TeacherError, match="is not a SigLIP or CLIP model"):
        load(broken, prompts)


@pytest.mark.parametrize(
    ("field", "value"), [("rescale_factor", 1 / 127.5), ("do_normalize", False), ("do_rescale", False)]
)
def test_a_processor_that_scales_pixels_otherwise_is_refused(
    field: str, value: object, tiny_teacher: Path, prompts: Prompts, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_teacher, tmp_path / "teacher"))
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"][field] = value
    path.write_text(json.dumps(config))
    with pytest.raises(TeacherError, match=f"{field} {value}"):
        load(folder, prompts)


def test_prompts_that_are_cut_are_told(tiny_teacher: Path, prompts: Prompts, caplog: pytest.LogCaptureFixture) -> None:
    load(tiny_teacher, prompts)
    assert "longer than" not in caplog.text
    first = next(iter(prompts))
    load(tiny_teacher, {**prompts, first: ("melanoma " * 70, "melanoma")})
    assert "1 prompts are longer than the 64 tokens that the teacher reads (first: melanoma melanoma" in caplog.text


def test_the_token_at_which_clip_pools_is_part_of_its_identity(tmp_path: Path) -> None:
    prompts = {"a": ("melanoma",), "b": ("nevus",)}
    folder = save_clip(tmp_path / "clip")
    before = load(folder, prompts)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    after = load(folder, prompts)
    assert np.abs(before.head.text_CD - after.head.text_CD).max() > 0.1
    assert before.identity != after.identity
