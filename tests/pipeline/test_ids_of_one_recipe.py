"""What the ids mean under one recipe: what moves cache_id or content_id, and what moves no id at all.

cache_id: the recipe and the (key, view) pairs. content_id: the rows. Each row of the first table changes one thing on
disk or in the settings, builds a small cache anew and compares; each row of the second changes a written table.
Run: pytest tests/pipeline/test_ids_of_one_recipe.py
"""

from __future__ import annotations

import dataclasses
import datetime as datetimes
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cache import CacheReader, Manifest, Table
from cache.fill import write_table
from cache.manifest import differences
from cache.survey import tolerance_logits
from data.options import ScanOptions

Change = Callable[[Any], object]
"""Of a `world` (conftest.py)."""
MOVES, STAYS = True, False
EITHER = None
"""Other bits of an equal answer: content_id may move or stay."""


def one_more_image(world: Any) -> None:
    """An image of the first class, in the test split."""
    folder = world.own_images() / "test" / "melanoma"
    Image.effect_noise((48, 48), 50).convert("RGB").save(folder / "more.png")


def other_bytes(world: Any) -> None:
    """The pixels of one image in a file of other bytes."""
    path = sorted(world.own_images().glob("train/*/*.png"))[0]
    encoded = io.BytesIO()
    Image.open(path).save(encoded, "png", compress_level=0)
    assert encoded.getvalue() != path.read_bytes()
    path.write_bytes(encoded.getvalue())


def one_bad_image(world: Any) -> None:
    """A file that is no image, and is skipped."""
    (world.own_images() / "test" / "melanoma" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    world.scan = ScanOptions(skip_bad_images=True)


def rename_image(world: Any) -> None:
    """Another file name."""
    path = sorted(world.own_images().glob("train/*/*.png"))[0]
    path.rename(path.with_name("renamed.png"))


def move_image(world: Any) -> None:
    """From one split to another that shows the clean view, too."""
    path = sorted(world.own_images().glob("val/*/*.png"))[0]
    path.rename(world.data / "test" / path.parent.name / "renamed.png")


def weights_in_two_files(world: Any) -> None:
    """As larger checkpoints are saved, in another order."""
    folder = world.own_teacher()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(reversed(weights))}
    for shard in set(shards.values()):
        part = {name: weights[name] for name in weights if shards[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def versions(world: Any) -> None:
    """Packages of other versions."""
    import torchvision
    import transformers

    for package in (torch, torchvision, transformers):
        world.patch.setattr(package, "__version__", "98.7.6")


def created_long_ago(world: Any) -> None:
    """A clock that stands."""

    class Clock(datetimes.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetimes.datetime:
            return datetimes.datetime(2001, 2, 3, tzinfo=tz)

    world.patch_constant("datetime", Clock)


def other_machine(world: Any) -> None:
    """A computer of another kind and name."""
    import platform
    import socket

    world.patch.setattr(platform, "machine", lambda: "pdp11")
    world.patch.setattr(platform, "node", lambda: "elsewhere")
    world.patch.setattr(socket, "gethostname", lambda: "elsewhere")


def two_threads(world: Any) -> None:
    """Both cores."""
    torch.set_num_threads(2)


# What is changed; what cache_id and content_id do; a word that the file then holds outside of its ids; the change.
OUT: list[tuple[str, bool, bool | None, str, Change]] = [
    ("the teacher's folder", STAYS, STAYS, "", lambda w: w.own_teacher()),
    ("the teacher's files", STAYS, STAYS, "", weights_in_two_files),
    ("a prompt file that says what the default says", STAYS, STAYS, "", lambda w: w.write_prompts()),
    ("the number of views", MOVES, MOVES, "", lambda w: w.set(views=4)),
    ("one image more", MOVES, MOVES, "more.png", one_more_image),
    ("an image's bytes but not its pixels", MOVES, MOVES, "", other_bytes),
    ("an image's name", STAYS, STAYS, "renamed.png", rename_image),
    ("an image's split", STAYS, STAYS, "renamed.png", move_image),
    ("the data folder", STAYS, STAYS, "", lambda w: w.own_images()),
    ("the embedding, which is not stored", STAYS, MOVES, "", lambda w: w.set(embedding=False)),
    ("the names, which are not stored", STAYS, STAYS, "null]", lambda w: w.set(names=False)),
    ("an image that is skipped", STAYS, STAYS, '"skipped":', one_bad_image),
    ("the batch size", STAYS, EITHER, '"rows_per_forward": 7', lambda w: w.set(batch_size=7)),
    ("the workers", STAYS, STAYS, "", lambda w: w.set(workers=1)),
    # The same bits on some processors, other last digits on others (seen on an AMD EPYC).
    ("the threads", STAYS, EITHER, "", two_threads),
    # Where there is a GPU, it answers: in other bits.
    ("the device", STAYS, EITHER if torch.accelerator.is_available() else STAYS, "", lambda w: w.set(device="auto")),
    ("the versions of packages", STAYS, STAYS, "98.7.6", versions),
    ("the time", STAYS, STAYS, "2001-02-03", created_long_ago),
    ("the machine", STAYS, STAYS, "pdp11", other_machine),
]


def assert_moves(one: CacheReader, other: CacheReader, *, recipe: bool, cache: bool, content: bool | None) -> None:
    """Each id differs, or does not, as a row of the table demands."""
    ids = {"recipe_id": recipe, "cache_id": cache, "content_id": content}
    demanded = {name: moves for name, moves in ids.items() if moves is not EITHER}
    assert {name: getattr(one, name) != getattr(other, name) for name in demanded} == demanded


@pytest.mark.parametrize(("cache", "content", "shown", "change"), [row[1:] for row in OUT], ids=[row[0] for row in OUT])
def test_the_recipe_stays_with_another_value_of(
    cache: bool, content: bool | None, shown: str, change: Change, world: Any, base: CacheReader
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


def rewritten(base: CacheReader, path: Path, provenance: dict[str, Any] | None = None, **changes: Any) -> CacheReader:
    """The rows of `base`, with other parts of the table or another provenance."""
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
