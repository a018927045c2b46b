"""What recipe_id means: every field of the identity, changed for real, moves recipe_id and cache_id.

Each row changes one thing on disk, in the settings or in a constant, builds a small cache anew and compares.
Run: pytest tests/pipeline/test_recipe_id.py
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cache import CacheReader
from cache.manifest import differences
from data.views import ViewPolicy

Change = Callable[[Any], object]
"""Of a `world` (conftest.py)."""
MOVES, STAYS = True, False
EITHER = None
"""Other bits of an equal answer, or an answer that happens to be the same: content_id may move or stay."""


def policy(name: str, value: Any) -> Change:
    """Views drawn otherwise."""
    return lambda w: w.set(policy=ViewPolicy(**{name: value}))


def weight(name: str, edit: Callable[[torch.Tensor], Any] = lambda first: first.add_(1.0)) -> Change:
    """Another first number of one tensor in the teacher's file."""

    def change(world: Any) -> None:
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

    def change(world: Any) -> None:
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


def in_config(tower: str, field: str, value: Any) -> Change:
    """A setting of the model that its weights do not show."""
    return in_json("config.json", f"{tower}_config", field, value=value)


def together(*changes: Change) -> Change:
    """All of them at once."""

    def change(world: Any) -> None:
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

    def change(world: Any) -> None:
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


def rename_class(world: Any) -> None:
    """melanoma -> melanomas, in all splits; it keeps its place among the sorted names."""
    for split in world.own_images().iterdir():
        (split / "melanoma").rename(split / "melanomas")


def rename_class_and_keep_its_prompt(world: Any) -> None:
    """The same, with the prompts in a file."""
    rename_class(world)
    world.write_prompts(melanomas="melanoma")


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
IN: list[tuple[str, str, bool | None, Change]] = [
    ("a weight of the image tower", "teacher.weights_sha256", MOVES, weight(f"{VISION}.bias")),
    ("the last bit of a weight", "teacher.weights_sha256", EITHER, weight(f"{VISION}.weight", last_bit)),
    ("a weight of the text tower", "teacher.weights_sha256", MOVES, weight("text_model.final_layer_norm.bias")),
    ("the logit scale", "teacher.logit_scale", MOVES, weight("logit_scale")),
    ("the logit bias", "teacher.logit_bias", MOVES, weight("logit_bias")),
    ("the tokenizer's vocabulary", "teacher.tokenizer_sha256", STAYS, pieces(one_more_piece)),
    ("how the tokenizer cuts", "teacher.prompt_tokens_sha256", MOVES, pieces(unlikely_pieces)),
    ("a prompt", "teacher.prompts.melanoma[0]", MOVES, lambda w: w.write_prompts(melanoma="a nevus")),
    (
        "two prompts instead of one",
        "teacher.prompts.melanoma",
        MOVES,
        lambda w: w.write_prompts(melanoma=["melanoma", "a nevus"]),
    ),
    (
        "the pooling of prompts",
        "teacher.prompt_pooling",
        STAYS,
        lambda w: w.patch_constant("_PROMPT_POOLING", "median"),
    ),
    ("a class's name", "tasks[0].classes[2]", MOVES, rename_class),
    ("a class's name but not its prompt", "tasks[0].classes[2]", STAYS, rename_class_and_keep_its_prompt),
    ("the view seed", "views.seed", MOVES, lambda w: w.set(seed=1)),
    ("the version of the draw", "views.draw_version", STAYS, lambda w: w.patch_constant("DRAW_VERSION", 2)),
    ("the interpolation", "views.interpolation", STAYS, lambda w: w.patch_constant("INTERPOLATION", "bicubic")),
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
    ("the precision", "precision", MOVES, lambda w: w.set(precision="bf16")),
    ("the version of the decoder", "decoder_version", STAYS, lambda w: w.patch_constant("DECODER_VERSION", 2)),
    ("the version of the identity", "identity_version", STAYS, lambda w: w.patch_constant("IDENTITY_VERSION", 3)),
]
# Square images look the same in both geometries.
IN += [
    (f"the views' {name}", f"views.{name}", EITHER if name == "geometry" else MOVES, policy(name, value))
    for name, value in OTHER_POLICY.items()
]


# Literals of the code, which no setting or file changes.
CONSTANT = {"teacher.kind", "teacher.head", "tasks[0].name", "view_columns"}


@pytest.mark.parametrize(("field", "content", "change"), [row[1:] for row in IN], ids=[row[0] for row in IN])
def test_recipe_and_cache_id_move_with(
    field: str, content: bool | None, change: Change, world: Any, base: CacheReader
) -> None:
    change(world)
    built = world.build()
    told = [line.split(": ")[0] for line in differences(base.manifest.identity, built.manifest.identity)]
    assert field in told
    assert built.recipe_id != base.recipe_id
    assert built.cache_id != base.cache_id
    assert content is EITHER or (built.content_id != base.content_id) == content


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
