"""Fitting a teacher: it learns, resumes exactly, validates on what it does not learn, and never touches test."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from data.decode import read_image
from data.errors import BadImage, BadSamples
from data.options import ScanOptions
from data.samples import FOLDER_TASK
from data.scan import scan_data
from data.views import CLEAN_ROW, render
from pipeline.errors import OutputExists, RunError, SettingError, TeacherError
from pipeline.fit import teacher as module
from pipeline.fit.folder import METRIC_COLUMNS, FitFolder, fitted_on
from pipeline.fit.steps import Steps
from pipeline.fit.teacher import FitConfig, fit_teacher, saved_config
from pipeline.fit.tuning import DualEncoderTuning
from pipeline.metrics import classification_metrics
from pipeline.teachers.loading import open_teacher
from pipeline.teachers.prompts import PromptSource, default_prompts

CONFIG = FitConfig(epochs=3, batch_size=8, lr_peak=2e-4)
TIMES = {"images_per_s", "wall_s", "cpu_s"}
StopAt = Callable[..., None]


@pytest.fixture(scope="module")
def fitted(tiny_data: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed fit."""
    return fit_teacher(tiny_data, tiny_teacher, tmp_path_factory.mktemp("fit") / "teacher", CONFIG, workers=0).path


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> StopAt:
    """`stop_at(n, error)`: the n-th step of a fit raises `error`, once."""
    step = Steps.__call__

    def stop_at(n_steps: int, error: BaseException | None = None) -> None:
        taken = 0

        def stopping(self: Steps, *arguments: Any) -> float:
            nonlocal taken
            taken += 1
            if taken == n_steps:
                raise error or KeyboardInterrupt
            return step(self, *arguments)

        monkeypatch.setattr(Steps, "__call__", stopping)

    return stop_at


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of fit_metrics.csv, without what no two fits share."""
    with (folder / "fit_metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def check_same_fit(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    expected = weights(other)
    assert weights(one).keys() == expected.keys()
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that anything can learn: red, green and blue noise."""
    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4)):
        for channel, name in enumerate(("melanoma", "nevus", "scar")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3)).astype(np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def test_a_fit_learns_and_keeps_the_best_epoch(colours: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    config = FitConfig(epochs=8, batch_size=6, lr_peak=3e-3)
    result = fit_teacher(colours, tiny_teacher, tmp_path / "teacher", config, workers=0)
    rows = metrics(result.path)
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    assert result.best_macro_f1 > result.start_macro_f1 + 0.15
    scores = [float(row["val_macro_f1"]) for row in rows]
    assert max(scores) == pytest.approx(result.best_macro_f1)
    assert scores[result.best_epoch - 1] == max(scores)
    assert not any(score == max(scores) for score in scores[result.best_epoch :]), "of equal epochs it is the later"
    told = validate(result.path, colours)
    assert told == pytest.approx(result.best_macro_f1), "the finished folder holds the weights of the best epoch"


def validate(teacher: Path, data: Path) -> float:
    """Macro F1 of a teacher folder on the clean val images, through the code of `cache build`."""
    images = scan_data(data)
    classes = images.classes[FOLDER_TASK]
    loaded = open_teacher(str(teacher), classes, default_prompts(classes), device="cpu", precision="fp32")
    val = images.of_split("val")
    pixels = torch.stack([render(read_image(sample.path), CLEAN_ROW, loaded.size_px) for sample in val])
    labels = torch.tensor([classes.index(sample.labels[FOLDER_TASK]) for sample in val]).numpy()
    return classification_metrics(loaded.head.logits(loaded.embed(pixels)), labels, classes).macro_f1


def test_a_finished_fit_is_an_ordinary_teacher_folder_that_says_what_it_was_fitted_on(
    fitted: Path, tiny_teacher: Path, tiny_data: Path
) -> None:
    names = {path.name for path in fitted.iterdir()}
    assert {"model.safetensors", "config.json", "fitted_on.json", "fit_metrics.csv", "fit_config.json"} <= names
    assert not any(name.endswith((".pt", ".tmp")) for name in names)
    assert (fitted / "fit_metrics.csv").read_text().splitlines()[0] == ",".join(METRIC_COLUMNS)
    images = scan_data(tiny_data)
    told = json.loads((fitted / "fitted_on.json").read_text())
    assert told == {"format": 1, "keys": sorted(sample.key.hex() for sample in images.of_split("train"))}
    prompts = default_prompts(images.classes[FOLDER_TASK])
    before, after = (
        open_teacher(str(f), list(prompts), prompts, device="cpu", precision="fp32") for f in (tiny_teacher, fitted)
    )
    assert after.preprocessing == before.preprocessing
    for name in ("tokenizer_sha256", "prompt_tokens_sha256", "architecture"):
        assert after.identity[name] == before.identity[name]
    assert after.identity["weights_sha256"] != before.identity["weights_sha256"]


def test_frozen_parts_are_bit_equal_after_a_fit(
    fitted: Path, tiny_teacher: Path, tiny_data: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, epochs=1, last_layers=1)
    fit_teacher(tiny_data, tiny_teacher, tmp_path / "teacher", config, workers=0)
    before = weights(tiny_teacher)
    for folder, frozen in (
        (fitted, ("text_model.",)),
        (tmp_path / "teacher", ("text_model.", "vision_model.embeddings.", "vision_model.encoder.layers.0.")),
    ):
        # A key's bias shifts all scores of a query alike: its gradient is rounding.
        changed = {name for name, tensor in weights(folder).items() if not torch.equal(tensor, before[name])}
        assert not {name for name in changed if name.startswith(frozen)}
        assert {name for name in before if not name.startswith(frozen) and "k_proj.bias" not in name} <= changed


@pytest.mark.parametrize("n_steps", [6, 9])
def test_an_interrupted_and_resumed_fit_equals_an_undisturbed_one(
    n_steps: int, fitted: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, stop_at: StopAt
) -> None:
    out = tmp_path / "teacher"
    stop_at(n_steps)  # of four an epoch: in the middle of the second, at the first of the third
    with pytest.raises(KeyboardInterrupt):
        fit_teacher(tiny_data, tiny_teacher, out, CONFIG, workers=0)
    last = torch.load(out / "last.pt", weights_only=True)
    assert last["epoch"] == (n_steps - 1) // 4
    assert not any(name.startswith("text_model.") for name in last["weights"])
    prompts = default_prompts(scan_data(tiny_data).classes[FOLDER_TASK])
    with pytest.raises(TeacherError):
        open_teacher(str(out), list(prompts), prompts, device="cpu", precision="fp32")
    fit_teacher(tiny_data, tiny_teacher, out, saved_config(out), resume=True, workers=0)
    check_same_fit(out, fitted)
    again = fit_teacher(tiny_data, tiny_teacher, out, saved_config(out), resume=True, workers=0)
    assert again.best_macro_f1 > 0, "resuming what is finished changes nothing"
    check_same_fit(out, fitted)


def test_an_interrupt_in_the_first_epoch_leaves_nothing_behind(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path, stop_at: StopAt
) -> None:
    stop_at(2)
    with pytest.raises(KeyboardInterrupt):
        fit_teacher(tiny_data, tiny_teacher, tmp_path / "teacher", CONFIG, workers=0)
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_much_the_same_and_resumes(
    precision: str, fitted: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, stop_at: StopAt
) -> None:
    config = dataclasses.replace(CONFIG, precision=precision, epochs=2)
    whole = fit_teacher(tiny_data, tiny_teacher, tmp_path / "whole", config, workers=0)
    loss = [float(row["loss"]) for row in metrics(whole.path)]
    if precision == "fp16":  # its first steps only find the loss scale
        assert np.isfinite(loss).all()
    else:
        assert loss[1] < loss[0]
        assert loss[0] == pytest.approx(float(metrics(fitted)[0]["loss"]), rel=0.1)
    assert all(tensor.dtype == torch.float32 for tensor in weights(whole.path).values())
    stop_at(6)
    with pytest.raises(KeyboardInterrupt):
        fit_teacher(tiny_data, tiny_teacher, tmp_path / "parts", config, workers=0)
    scaler = torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["steps"]["scaler"]
    assert bool(scaler) == (precision == "fp16")
    fit_teacher(tiny_data, tiny_teacher, tmp_path / "parts", config, resume=True, workers=0)
    check_same_fit(tmp_path / "parts", whole.path)


def test_resuming_with_other_settings_or_images_lists_every_difference(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path, stop_at: StopAt
) -> None:
    data, source, out = (tmp_path / name for name in ("images", "source", "teacher"))
    shutil.copytree(tiny_data, data)
    shutil.copytree(tiny_teacher, source)
    stop_at(6)
    with pytest.raises(KeyboardInterrupt):
        fit_teacher(data, source, out, CONFIG, workers=0)
    before = (out / "last.pt").read_bytes()
    next((data / "train" / "melanoma").iterdir()).unlink()
    changed = weights(source)
    changed["vision_model.post_layernorm.bias"][0] += 1
    save_file(changed, source / "model.safetensors", metadata={"format": "pt"})
    prompts = {name: texts[0] for name, texts in default_prompts(scan_data(data).classes[FOLDER_TASK]).items()}
    (tmp_path / "p.yaml").write_text(json.dumps({**prompts, "melanoma": "a dark mole"}))
    other = dataclasses.replace(CONFIG, epochs=9, seed=3)
    with pytest.raises(RunError, match="cannot go on with other settings") as caught:
        fit_teacher(data, source, out, other, prompts=PromptSource(file=tmp_path / "p.yaml"), resume=True, workers=0)
    for line in (
        "epochs: the fit has 3, this call 9", "seed: the fit has 0, this call 3", "the weights of --from are others",
        "prompt of 'melanoma': the fit has ['melanoma'], this call ['a dark mole']",
        "images were added, removed or relabelled",
    ):  # fmt: skip
        assert line in str(caught.value)
    assert (out / "last.pt").read_bytes() == before


def test_a_folder_that_is_not_empty_is_refused_with_the_remedies(
    fitted: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, stop_at: StopAt
) -> None:
    with pytest.raises(OutputExists, match="is not empty: choose another -o"):
        fit_teacher(tiny_data, tiny_teacher, fitted, CONFIG)
    stop_at(5)
    with pytest.raises(KeyboardInterrupt):
        fit_teacher(tiny_data, tiny_teacher, tmp_path / "t", CONFIG, workers=0)
    with pytest.raises(OutputExists, match="go on with it by --resume, or choose another -o"):
        fit_teacher(tiny_data, tiny_teacher, tmp_path / "t", CONFIG)


def test_resuming_what_is_no_fit_says_so(tiny_data: Path, tiny_teacher: Path, tmp_path: Path, fitted: Path) -> None:
    with pytest.raises(RunError, match="holds no interrupted fit: start one without --resume"):
        fit_teacher(tiny_data, tiny_teacher, tmp_path / "nothing", CONFIG, resume=True)
    with pytest.raises(RunError, match="a teacher that was not fitted there"):
        fit_teacher(tiny_data, tiny_teacher, tiny_teacher, CONFIG, resume=True)
    with pytest.raises(RunError, match="epochs: the fit has 3, this call 4"):
        fit_teacher(tiny_data, tiny_teacher, fitted, dataclasses.replace(CONFIG, epochs=4), resume=True)


def test_a_fit_is_not_taken_for_a_training_nor_a_training_for_a_fit(
    cli: Callable[..., tuple[int, str, str]], tiny_data: Path, tiny_cache: Path, tiny_teacher: Path, tiny_run: Path,
    tmp_path: Path, stop_at: StopAt,
) -> None:  # fmt: skip
    half = tmp_path / "half"
    stop_at(6)
    with pytest.raises(KeyboardInterrupt):
        fit_teacher(tiny_data, tiny_teacher, half, CONFIG, workers=0)
    for words in (
        ("train", tiny_data, tiny_cache, "-o", half, "--resume"), ("evaluate", half, tiny_data),
        ("export", half, "-o", tmp_path / "s.pt"),
    ):  # fmt: skip
        code, _, err = cli(*words)
        assert (code, "is no student's: expected one that `softlabel train` wrote" in err) == (1, True), err
    code, _, err = cli("teacher", "fit", tiny_data, "--from", tiny_teacher, "-o", tiny_run, "--resume")
    assert (code, "is no fit's: expected one that `softlabel teacher fit` wrote" in err) == (1, True), err


def test_validation_is_split_off_train_where_there_is_no_val_and_test_is_never_read(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    data = shutil.copytree(tiny_data, tmp_path / "images")
    shutil.rmtree(data / "val")
    for image in (data / "test").glob("*/*.png"):
        image.write_text(f"{image} is no image: whoever decodes it fails")
    shown: dict[bool, set[bytes]] = {True: set(), False: set()}
    load = module.StudentLoader.__call__

    def watched(self: Any, batches: Any) -> Any:
        for item in (item for batch in batches for item in batch):
            shown[bool((item.params == CLEAN_ROW).all())].add(item.sample.key)
        return load(self, batches)

    monkeypatch.setattr(module.StudentLoader, "__call__", watched)
    config = dataclasses.replace(CONFIG, epochs=1, val_fraction=0.2)
    with caplog.at_level(logging.INFO):
        fit_teacher(data, tiny_teacher, tmp_path / "teacher", config, workers=0)
    assert "24 train, 6 val (20% of train, by class)" in caplog.text
    assert (len(shown[False]), len(shown[True])) == (24, 6)
    assert fitted_on(tmp_path / "teacher") == shown[False]
    assert not shown[False] & shown[True]


def test_a_fit_that_goes_on_from_a_fitted_teacher_also_knows_its_images(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = shutil.copytree(tiny_teacher, tmp_path / "source")
    images = scan_data(tiny_data)
    elsewhere, val = b"\xab" * 16, images.of_split("val")[0].key
    (source / "fitted_on.json").write_text(json.dumps({"format": 1, "keys": [elsewhere.hex(), val.hex()]}))
    with caplog.at_level(logging.INFO):
        fit_teacher(tiny_data, source, tmp_path / "teacher", dataclasses.replace(CONFIG, epochs=1), workers=0)
    assert fitted_on(tmp_path / "teacher") == {elsewhere, val, *(s.key for s in images.of_split("train"))}
    assert "1 of the validation images are among those" in caplog.text
    (source / "fitted_on.json").write_text('{"format": 1, "keys": ["ab"]}')
    with pytest.raises(TeacherError, match=r"fitted_on\.json is damaged"):
        fit_teacher(tiny_data, source, tmp_path / "other", CONFIG, workers=0)


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_saved_epochs(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, calls = DualEncoderTuning.loss, []

    def broken(self: DualEncoderTuning, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        return loss(self, *arguments) * (float("nan") if len(calls) == 6 else 1)

    monkeypatch.setattr(DualEncoderTuning, "loss", broken)
    with pytest.raises(RunError, match=r"the loss is not finite in step 6 of 12.*\(now 0\.0002\): lower --lr"):
        fit_teacher(tiny_data, tiny_teacher, tmp_path / "teacher", CONFIG, workers=0)
    last = FitFolder(tmp_path / "teacher").load_last()
    assert last["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in last["weights"].values())


def test_a_gradient_that_is_no_number_stops_before_any_weight_changes(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steep(self: DualEncoderTuning, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (logits - logits.detach()).sqrt().sum()  # 0, with an infinite slope

    monkeypatch.setattr(DualEncoderTuning, "loss", steep)
    with pytest.raises(RunError, match="the gradient is not finite in step 1 of 12"):
        fit_teacher(tiny_data, tiny_teacher, tmp_path / "teacher", CONFIG, workers=0)
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_says_what_needs_less(
    error: RuntimeError, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, stop_at: StopAt
) -> None:
    stop_at(1, error)
    with pytest.raises(RunError, match=r"--batch-size \(now 8\).*--gradient-checkpointing.*--last-layers \(of 2\)"):
        fit_teacher(tiny_data, tiny_teacher, tmp_path / "teacher", CONFIG, workers=0)


def test_images_that_cannot_be_decoded_are_listed_before_the_first_step_or_left_out(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    bad = [next((data / split / "melanoma").iterdir()) for split in ("train", "val")]
    for path in bad:
        path.write_bytes(f"no image {path}".encode())
    config = dataclasses.replace(CONFIG, epochs=1)
    with pytest.raises(BadImage, match=r"2 of 45 images cannot be decoded.*--skip-bad-images") as caught:
        fit_teacher(data, tiny_teacher, tmp_path / "teacher", config, workers=0)
    assert all(str(path) in str(caught.value) for path in bad)
    scan = ScanOptions(skip_bad_images=True)
    fit_teacher(data, tiny_teacher, tmp_path / "teacher", config, workers=0, scan=scan)
    assert len(fitted_on(tmp_path / "teacher")) == 29


def test_a_train_split_of_one_class_is_refused(tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    for folder in sorted((data / "train").iterdir())[1:]:
        shutil.rmtree(folder)
    with pytest.raises(BadSamples, match="too few train images: 6 without those for validation"):
        fit_teacher(data, tiny_teacher, tmp_path / "teacher", CONFIG, workers=0)


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("batch_size", 0), ("lr_peak", 0), ("val_fraction", 0.6), ("seed", -1)]
)
def test_settings_out_of_range_say_what_they_got(name: str, value: float) -> None:
    with pytest.raises(SettingError, match=rf"{name} must be in .*, got {value}"):
        FitConfig(**{name: value})


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(SettingError, match="precision must be one of auto, fp32, bf16, fp16, got 'fp8'"):
        FitConfig(precision="fp8")
