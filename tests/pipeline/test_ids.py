"""The in/out table of the three ids: one row a change, made for real, and which ids have to move with it.

recipe_id: which teacher, classes and views. cache_id: the recipe and the (key, view) pairs. content_id: the rows.
Each row changes one thing on disk, in the settings or in a constant, builds the tiny cache anew and compares.
Run: pytest tests/pipeline/test_ids.py
"""

from __future__ import annotations

import dataclasses
import datetime as datetimes
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cache import CacheReader, Manifest, Table
from cache.combine import tolerance_logits
from cache.fill import write_table
from cache.manifest import differences
from data.options import ScanOptions
from data.samples import FOLDER_TASK, scan_folder
from data.views import ViewPolicy
from pipeline.build import BuildConfig, build_cache
from pipeline.teachers.prompts import default_prompts

MOVES, STAYS = True, False
EITHER = None
"""Other bits of an equal answer, or an answer that happens to be the same: content_id may move or stay."""


class World:
    """What one build is given. A change edits its own copy of it; the ids then come from a real build."""

    def __init__(self, folder: Path, data: Path, config: BuildConfig, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.data, self.config, self.patch = folder, data, config, patch
        self.scan = ScanOptions()

    def own_teacher(self) -> Path:
        """The teacher in a folder that may be changed."""
        folder = self.folder / "other teacher"
        if not folder.exists():
            shutil.copytree(self.config.teacher, folder)
            self.config = dataclasses.replace(self.config, teacher=str(folder))
        return folder

    def own_images(self) -> Path:
        """The images in a folder that may be changed."""
        if self.data.parent != self.folder:
            self.data = shutil.copytree(self.data, self.folder / "other images")
        return self.data

    def build(self) -> CacheReader:
        """The cache of all that."""
        return CacheReader(build_cache(self.data, self.folder / "t.h5", self.config, self.scan).path)


Change = Callable[[World], object]


def setting(**changes: Any) -> Change:
    """Another BuildConfig."""

    def change(world: World) -> None:
        world.config = dataclasses.replace(world.config, **changes)

    return change


def policy(name: str, value: Any) -> Change:
    """Views drawn otherwise."""
    return setting(policy=ViewPolicy(**{name: value}))


def weight(name: str, edit: Callable[[torch.Tensor], Any] = lambda first: first.add_(1.0)) -> Change:
    """Another first number of one tensor in the teacher's file."""

    def change(world: World) -> None:
        path = world.own_teacher() / "model.safetensors"
        weights = load_file(path)
        before = weights[name].clone()
        edit(weights[name].view(-1)[:1])
        assert int((weights[name] != before).sum()) == 1
        save_file(weights, path, metadata={"format": "pt"})

    return change


def last_bit(first: torch.Tensor) -> None:
    """The next larger float32."""
    first.copy_(torch.nextafter(first, torch.tensor(torch.inf)))


def in_json(file: str, *where: str, value: Any) -> Change:
    """Another value in one of the teacher's JSON files."""

    def change(world: World) -> None:
        path = world.own_teacher() / file
        whole = json.loads(path.read_text())
        part = whole
        for name in where[:-1]:
            part = part[name]
        assert part[where[-1]] != value
        part[where[-1]] = value
        path.write_text(json.dumps(whole))

    return change


def image_processor(*where: str, value: Any) -> Change:
    """Another setting of the checkpoint's processor."""
    return in_json("processor_config.json", "image_processor", *where, value=value)


def together(*changes: Change) -> Change:
    """All of them at once."""

    def change(world: World) -> None:
        for one in changes:
            one(world)

    return change


INPUT_OF_33_PX = together(
    # 33 // 8 is 32 // 8: as many patches, so that all weights stay.
    image_processor("size", value={"height": 33, "width": 33}),
    in_json("config.json", "vision_config", "image_size", value=33),
)


def pieces(edit: Callable[[Any], None]) -> Change:
    """Another SentencePiece model in the teacher's folder."""

    def change(world: World) -> None:
        from sentencepiece import sentencepiece_model_pb2

        path = world.own_teacher() / "spiece.model"
        model = sentencepiece_model_pb2.ModelProto()
        model.ParseFromString(path.read_bytes())
        edit(model)
        path.write_bytes(model.SerializeToString())

    return change


def one_more_piece(model: Any) -> None:
    """A piece that no prompt is made of."""
    model.pieces.add(piece="qqq", score=-50.0)


def unlikely_pieces(model: Any) -> None:
    """The same pieces, of which only single letters are ever used."""
    for piece in model.pieces:
        if len(piece.piece) > 1 and piece.type == model.SentencePiece.NORMAL:
            piece.score = -1000.0


def prompts(**changes: str | list[str]) -> Change:
    """A prompt file: the default prompts, and others for some classes (in whose names _ stands for a space)."""

    def change(world: World) -> None:
        texts: dict[str, Any] = {name: text for name, (text,) in default_prompts(classes_of(world.data)).items()}
        changed = {name.replace("_", " "): text for name, text in changes.items()}
        assert changed.keys() <= texts.keys()
        path = world.folder / "prompts.yaml"
        path.write_text(json.dumps(dict(reversed((texts | changed).items()))))
        world.config = dataclasses.replace(world.config, prompts=path)

    return change


def classes_of(data: Path) -> tuple[str, ...]:
    """The class names of an image folder."""
    return scan_folder(data).classes[FOLDER_TASK]


def rename_class(world: World) -> None:
    """melanoma -> melanomas, in all splits; it keeps its place among the sorted names."""
    for split in world.own_images().iterdir():
        (split / "melanoma").rename(split / "melanomas")


def rename_class_and_keep_its_prompt(world: World) -> None:
    """The same, with the prompts in a file."""
    rename_class(world)
    prompts(melanomas="melanoma")(world)


def constant(name: str, value: Any) -> Change:
    """Another value of a constant, in each of our modules that knows it."""

    def change(world: World) -> None:
        ours = [module for word, module in sys.modules.items() if word.split(".")[0] in ("cache", "data", "pipeline")]
        holders = [module for module in ours if hasattr(module, name)]
        assert holders
        for module in holders:
            world.patch.setattr(module, name, value)

    return change


def one_more_image(world: World) -> None:
    """An image of the first class, in the test split."""
    folder = world.own_images() / "test" / "melanoma"
    Image.effect_noise((48, 48), 50).convert("RGB").save(folder / "more.png")


def other_bytes(world: World) -> None:
    """The pixels of one image in a file of other bytes."""
    path = sorted(world.own_images().glob("train/*/*.png"))[0]
    encoded = io.BytesIO()
    Image.open(path).save(encoded, "png", compress_level=0)
    assert encoded.getvalue() != path.read_bytes()
    path.write_bytes(encoded.getvalue())


def one_bad_image(world: World) -> None:
    """A file that is no image, and is skipped."""
    (world.own_images() / "test" / "melanoma" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    world.scan = ScanOptions(skip_bad_images=True)


def rename_image(world: World) -> None:
    """Another file name."""
    path = sorted(world.own_images().glob("train/*/*.png"))[0]
    path.rename(path.with_name("renamed.png"))


def move_image(world: World) -> None:
    """From one split to another that shows the clean view, too."""
    path = sorted(world.own_images().glob("val/*/*.png"))[0]
    path.rename(world.data / "test" / path.parent.name / "renamed.png")


def weights_in_two_files(world: World) -> None:
    """As larger checkpoints are saved, in another order."""
    folder = world.own_teacher()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(reversed(weights))}
    for shard in set(shards.values()):
        part = {name: weights[name] for name in weights if shards[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def versions(world: World) -> None:
    """Packages of other versions."""
    import torchvision
    import transformers

    for package in (torch, torchvision, transformers):
        world.patch.setattr(package, "__version__", "98.7.6")


def created_long_ago(world: World) -> None:
    """A clock that stands."""

    class Clock(datetimes.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetimes.datetime:  # type: ignore[override]
            return datetimes.datetime(2001, 2, 3, tzinfo=tz)

    constant("datetime", Clock)(world)


def other_machine(world: World) -> None:
    """A computer of another kind and name."""
    import platform
    import socket

    world.patch.setattr(platform, "machine", lambda: "pdp11")
    world.patch.setattr(platform, "node", lambda: "elsewhere")
    world.patch.setattr(socket, "gethostname", lambda: "elsewhere")


def two_threads(world: World) -> None:
    """Both cores."""
    torch.set_num_threads(2)


OTHER_POLICY: dict[str, Any] = {
    "crop_area_min": 0.6,
    "crop_ratio_max": 1.5,
    "hflip_probability": 0.1,
    "vflip_probability": 0.1,
    "quarter_turns": False,
    "brightness": 0.1,
    "contrast": 0.1,
    "saturation": 0.1,
    "geometry": "pad",
}

VISION = "vision_model.encoder.layers.0.mlp.fc1"


# What is changed; a field of the identity that has to tell; what content_id does; the change.
def in_config(tower: str, field: str, value: Any) -> Change:
    """A setting of the model that its weights do not show."""
    return in_json("config.json", f"{tower}_config", field, value=value)


IN: list[tuple[str, str, bool | None, Change]] = [
    ("a weight of the image tower", "teacher.weights_sha256", MOVES, weight(f"{VISION}.bias")),
    ("the last bit of a weight", "teacher.weights_sha256", EITHER, weight(f"{VISION}.weight", last_bit)),
    ("a weight of the text tower", "teacher.weights_sha256", MOVES, weight("text_model.final_layer_norm.bias")),
    ("the logit scale", "teacher.logit_scale", MOVES, weight("logit_scale")),
    ("the logit bias", "teacher.logit_bias", MOVES, weight("logit_bias")),
    ("the tokenizer's vocabulary", "teacher.tokenizer_sha256", STAYS, pieces(one_more_piece)),
    ("how the tokenizer cuts", "teacher.prompt_tokens_sha256", MOVES, pieces(unlikely_pieces)),
    ("a prompt", "teacher.prompts.melanoma[0]", MOVES, prompts(melanoma="a nevus")),
    ("two prompts instead of one", "teacher.prompts.melanoma", MOVES, prompts(melanoma=["melanoma", "a nevus"])),
    ("the pooling of prompts", "teacher.prompt_pooling", STAYS, constant("_PROMPT_POOLING", "median")),
    ("a class's name", "tasks[0].classes[2]", MOVES, rename_class),
    ("a class's name but not its prompt", "tasks[0].classes[2]", STAYS, rename_class_and_keep_its_prompt),
    ("the view seed", "views.seed", MOVES, setting(seed=1)),
    ("the version of the draw", "views.draw_version", STAYS, constant("DRAW_VERSION", 2)),
    ("the interpolation", "views.interpolation", STAYS, constant("INTERPOLATION", "bicubic")),
    *(
        (
            f"{field} of the {tower} tower",
            f"teacher.architecture.{tower}.{field}",
            MOVES,
            in_config(tower, field, value),
        )
        for tower in ("vision", "text")
        for field, value in (("num_attention_heads", 4), ("hidden_act", "relu"), ("layer_norm_eps", 0.1))
    ),
    ("the input size", "preprocessing.size_px", MOVES, INPUT_OF_33_PX),
    ("the mean", "preprocessing.mean[1]", MOVES, image_processor("image_mean", value=[0.5, 0.4, 0.5])),
    ("the standard deviation", "preprocessing.std[2]", MOVES, image_processor("image_std", value=[0.5, 0.5, 0.4])),
    ("the precision", "precision", MOVES, setting(precision="bf16")),
    ("the version of the decoder", "decoder_version", STAYS, constant("DECODER_VERSION", 2)),
    ("the version of the identity", "identity_version", STAYS, constant("IDENTITY_VERSION", 3)),
]
# Square images look the same in both geometries.
IN += [
    (f"the views' {name}", f"views.{name}", EITHER if name == "geometry" else MOVES, policy(name, value))
    for name, value in OTHER_POLICY.items()
]

# What is changed; what cache_id and content_id do; a word that the file then holds outside of its ids; the change.
OUT: list[tuple[str, bool, bool | None, str, Change]] = [
    ("the teacher's folder", STAYS, STAYS, "", World.own_teacher),
    ("the teacher's files", STAYS, STAYS, "", weights_in_two_files),
    ("a prompt file that says what the default says", STAYS, STAYS, "", prompts()),
    ("the number of views", MOVES, MOVES, "", setting(views=4)),
    ("one image more", MOVES, MOVES, "more.png", one_more_image),
    ("an image's bytes but not its pixels", MOVES, MOVES, "", other_bytes),
    ("an image's name", STAYS, STAYS, "renamed.png", rename_image),
    ("an image's split", STAYS, STAYS, "renamed.png", move_image),
    ("the data folder", STAYS, STAYS, "", World.own_images),
    ("the embedding, which is not stored", STAYS, MOVES, "", setting(embedding=False)),
    ("the names, which are not stored", STAYS, STAYS, "null]", setting(names=False)),
    ("an image that is skipped", STAYS, STAYS, '"skipped":', one_bad_image),
    ("the batch size", STAYS, EITHER, '"rows_per_forward": 7', setting(batch_size=7)),
    ("the workers", STAYS, STAYS, "", setting(workers=1)),
    ("the threads", STAYS, STAYS, "", two_threads),
    # Where there is a GPU, it answers: in other bits.
    ("the device", STAYS, EITHER if torch.accelerator.is_available() else STAYS, "", setting(device="auto")),
    ("the versions of packages", STAYS, STAYS, "98.7.6", versions),
    ("the time", STAYS, STAYS, "2001-02-03", created_long_ago),
    ("the machine", STAYS, STAYS, "pdp11", other_machine),
]

# Literals of the code, which no setting or file changes.
CONSTANT = {"teacher.kind", "teacher.head", "tasks[0].name", "view_columns"}


@pytest.fixture
def world(tmp_path: Path, tiny_data: Path, tiny_build: BuildConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The world of the tiny cache, to be changed."""
    threads = torch.get_num_threads()
    yield World(tmp_path, tiny_data, tiny_build, monkeypatch)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tiny_cache: Path) -> CacheReader:
    """The cache of the unchanged world."""
    return CacheReader(tiny_cache)


def assert_moves(one: CacheReader, other: CacheReader, *, recipe: bool, cache: bool, content: bool | None) -> None:
    """Each id differs, or does not, as a row of the table demands."""
    ids = {"recipe_id": recipe, "cache_id": cache, "content_id": content}
    demanded = {name: moves for name, moves in ids.items() if moves is not EITHER}
    assert {name: getattr(one, name) != getattr(other, name) for name in demanded} == demanded


@pytest.mark.parametrize(("field", "content", "change"), [row[1:] for row in IN], ids=[row[0] for row in IN])
def test_recipe_and_cache_id_move_with(
    field: str, content: bool | None, change: Change, world: World, base: CacheReader
) -> None:
    change(world)
    built = world.build()
    told = [line.split(": ")[0] for line in differences(base.manifest.identity, built.manifest.identity)]
    assert field in told
    assert_moves(base, built, recipe=MOVES, cache=MOVES, content=content)


@pytest.mark.parametrize(("cache", "content", "shown", "change"), [row[1:] for row in OUT], ids=[row[0] for row in OUT])
def test_the_recipe_stays_with_another_value_of(
    cache: bool, content: bool | None, shown: str, change: Change, world: World, base: CacheReader
) -> None:
    change(world)
    built = world.build()
    assert differences(base.manifest.identity, built.manifest.identity) == []
    assert_moves(base, built, recipe=STAYS, cache=cache, content=content)
    assert shown in text_outside_the_ids(built)
    assert not shown or shown not in text_outside_the_ids(base)
    if not cache:
        assert_one_answer_up_to_rounding(base, built)


def text_outside_the_ids(reader: CacheReader) -> str:
    """Provenance and names, which are for people."""
    return json.dumps([reader.manifest.provenance, reader.names])


def assert_one_answer_up_to_rounding(one: CacheReader, other: CacheReader) -> None:
    """What is demanded where content_id may move: the same views, and logits within the recipe's tolerance."""
    rows = np.arange(one.n_rows)
    np.testing.assert_array_equal(one.params(rows), other.params(rows))
    np.testing.assert_array_equal(one.witness(rows), other.witness(rows))
    assert tolerance_logits(one.manifest) == 1e-4
    np.testing.assert_allclose(one.logits(rows), other.logits(rows), rtol=0, atol=1e-4)
    for name in one.features.keys() & other.features.keys():
        np.testing.assert_allclose(one.feature(rows, name), other.feature(rows, name), rtol=2e-3, atol=2e-3)


def test_the_table_has_a_row_for_every_field_of_the_identity(base: CacheReader) -> None:
    rows = {field for _, field, _, _ in IN} | CONSTANT
    missing = [leaf for leaf in leaves(base.manifest.identity) if not any(covers(field, leaf) for field in rows)]
    assert missing == []


def test_the_table_has_a_row_for_every_field_of_the_policy() -> None:
    assert set(OTHER_POLICY) == {field.name for field in dataclasses.fields(ViewPolicy)}


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Dotted paths down to the values, lists as a whole."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path


def covers(field: str, leaf: str) -> bool:
    """Whether a row about `field` proves `leaf`; prompts are one field, whatever the class."""
    if "prompts." in leaf:
        return "prompts." in field
    return re.sub(r"\[\d+\]$", "", field) == leaf


def rewritten(base: CacheReader, path: Path, provenance: dict[str, Any] | None = None, **changes: Any) -> CacheReader:
    """The rows of the tiny cache, with other parts of the table or another provenance."""
    table = dataclasses.replace(base.table(), **changes)
    write_table(path, Manifest(base.manifest.identity, provenance or base.manifest.provenance), table)
    return CacheReader(path)


def flipped(array: np.ndarray, at: int = 0) -> np.ndarray:
    """A copy with the last bit of one byte flipped."""
    copy = array.copy()
    copy.reshape(-1).view(np.uint8)[at] ^= 1
    return copy


def each_flipped(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same of every array."""
    return {name: flipped(array) for name, array in arrays.items()}


def last_view_is_9(table: Table) -> dict[str, Any]:
    """Another view index in the last row."""
    view = table.view.copy()
    view[-1] = 9
    return {"view": view}


# What is changed; what cache_id and content_id do; the change as arguments of `rewritten`.
WRITTEN: list[tuple[str, bool, bool, Callable[[Table], dict[str, Any]]]] = [
    ("equal rows", STAYS, STAYS, lambda table: {}),
    ("a list of skipped images", STAYS, STAYS, lambda table: {"provenance": {"skipped": ["mel/1.jpg: no image"]}}),
    ("other names", STAYS, STAYS, lambda table: {"names": [f"other/{i}.jpg" for i in range(len(table.key))]}),
    ("no names", STAYS, STAYS, lambda table: {"names": None}),
    ("no embedding", STAYS, MOVES, lambda table: {"features": {}}),
    ("one more feature", STAYS, MOVES, lambda table: {"features": table.features | {"a": table.features["embedding"]}}),
    ("another bit in a feature", STAYS, MOVES, lambda table: {"features": each_flipped(table.features)}),
    ("another bit in a logit", STAYS, MOVES, lambda table: {"logits": each_flipped(table.logits)}),
    ("another bit in a drawn number", STAYS, MOVES, lambda table: {"params": flipped(table.params)}),
    ("another bit in a witness", STAYS, MOVES, lambda table: {"witness": flipped(table.witness)}),
    ("another bit in a key", MOVES, MOVES, lambda table: {"key": flipped(table.key, at=15)}),
    ("another view index", MOVES, MOVES, last_view_is_9),
]


@pytest.mark.parametrize(("cache", "content", "change"), [row[1:] for row in WRITTEN], ids=[row[0] for row in WRITTEN])
def test_the_recipe_stays_in_a_file_written_with(
    cache: bool, content: bool, change: Callable[[Table], dict[str, Any]], base: CacheReader, tmp_path: Path
) -> None:
    assert "embedding" in base.features
    assert base.names is not None
    written = rewritten(base, tmp_path / "t.h5", **change(base.table()))
    assert_moves(base, written, recipe=STAYS, cache=cache, content=content)
