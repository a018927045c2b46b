"""The build command that a message suggests has the settings of the cache, and nothing that a shell would obey."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache import CacheReader, Table
from pipeline.rebuilding import Rebuilding, rebuilding

Resealed = Callable[..., Path]


def told(path: Path) -> Rebuilding:
    return rebuilding(CacheReader(path))


def test_the_options_are_those_that_differ_from_the_defaults(tiny_cache: Path, resealed: Resealed) -> None:
    views = {**CacheReader(tiny_cache).manifest.identity["views"], "seed": "7"}
    other = resealed(
        tiny_cache, lambda table: replace(table, features={}), identity={"views": views, "precision": "bf16"},
        provenance={"teacher": "google/medsiglip-448"},
    )  # fmt: skip
    options = " ".join(told(other).options)
    assert options == "--teacher google/medsiglip-448 --views 3 --seed 7 --precision bf16 --no-embedding"
    assert told(other).user_adds == ""


def test_eight_views_of_seed_0_in_the_precision_of_this_machine_need_no_word(
    tiny_cache: Path, resealed: Resealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.rebuilding.resolve_device", lambda _: "cpu")

    def renumbered(table: Table) -> None:
        table.view[table.view == 2] = 7

    eight = resealed(tiny_cache, renumbered, provenance={"teacher": "torchvision:resnet50"})
    assert told(eight).options == ("--teacher", "torchvision:resnet50")


@pytest.mark.parametrize("named", [None, 5, "", "-o", "a\nb", "x" * 1000])
def test_a_teacher_that_is_not_named_is_left_to_the_user(named: Any, tiny_cache: Path, resealed: Resealed) -> None:
    found = told(resealed(tiny_cache, provenance={"teacher": named}))
    assert "--teacher" not in found.options
    assert found.user_adds == " with the settings it was built with"


def test_prompts_of_their_own_and_the_path_of_a_folder_are_the_users_to_add(
    tiny_cache: Path, resealed: Resealed
) -> None:
    identity = CacheReader(tiny_cache).manifest.identity
    prompts = {name: [f"a photo of {name}"] for name in CacheReader(tiny_cache).tasks["class"]}
    other = resealed(
        tiny_cache, identity={"teacher": {**identity["teacher"], "prompts": prompts}}, provenance={"teacher": "my clip"}
    )
    assert told(other).user_adds == " with your own path to my clip and the prompts it was built with"


@pytest.mark.parametrize("strange", [5, None, {}, {"seed": 7}, {"seed": "7; rm -rf x"}])
def test_what_a_stranger_says_of_the_views_is_no_option_unless_it_is_a_number(
    strange: Any, tiny_cache: Path, resealed: Resealed
) -> None:
    assert "--seed" not in told(resealed(tiny_cache, identity={"views": strange, "precision": strange})).options
