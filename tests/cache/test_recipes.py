"""Why two recipes differ, in the words of the command line where it has any."""

from __future__ import annotations

from typing import Any

import pytest

from cache.recipes import Apart, apart

IDENTITY: dict[str, Any] = {
    "tasks": [{"name": "class", "classes": ["mel", "nv"]}],
    "teacher": {"kind": "siglip", "head": "zero_shot", "weights_sha256": "00", "prompts": {"mel": ["melanoma"]}},
    "precision": "fp32",
    "views": {"seed": "0"},
}
ORDER = "stored against wanted"


def of(other: Any, one: Any = IDENTITY) -> Apart | None:
    return apart(one, other, ("a.h5", "b.h5"), ORDER)


def with_teacher(**changes: Any) -> dict[str, Any]:
    return {**IDENTITY, "teacher": {**IDENTITY["teacher"], **changes}}


OTHER_TASKS = [{"name": "class", "classes": ["mel", "df"]}]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({**IDENTITY, "views": {"seed": "1"}}, "another --seed"),
        (
            {**IDENTITY, "views": {"seed": "1"}, "precision": "fp16"},
            "another --precision and another --seed",
        ),
        (with_teacher(prompts={"mel": ["a mole"]}), "other --prompts"),
        (with_teacher(weights_sha256="11"), "another --teacher"),
        ({**with_teacher(prompts={"df": ["x"]}), "tasks": OTHER_TASKS}, "other classes"),
        (
            {**with_teacher(kind="clip"), "tasks": OTHER_TASKS, "precision": "bf16"},
            "another --teacher, other classes and another --precision",
        ),
    ],
)
def test_settings_are_called_as_on_the_command_line_and_every_field_is_listed(other: Any, words: str) -> None:
    found = of(other)
    assert found is not None
    assert found.reason == f", with {words} ({ORDER})"
    assert found.fields.startswith("\n  ")


def test_fields_that_no_option_sets_are_listed_alone() -> None:
    assert of({**IDENTITY, "decoder_version": 2}) == Apart(f" ({ORDER})", "\n  decoder_version: (absent) against 2")


def test_equal_recipes_are_not_apart() -> None:
    assert of(dict(IDENTITY)) is None


def test_of_a_cache_that_another_command_made_only_that_is_said() -> None:
    probed, imported = with_teacher(head="probe", probe={"l2": "0"}), {**IDENTITY, "teacher": {"kind": "imported"}}
    assert of(probed) == Apart(", as b.h5 comes from `softlabel cache probe`", "")
    both = ", as a.h5 comes from `softlabel cache probe` and b.h5 comes from `softlabel cache import`"
    assert of(imported, probed) == Apart(both, "")
    other_probe = of(with_teacher(head="probe", probe={"l2": "1"}), probed)
    assert other_probe == Apart(f" ({ORDER})", '\n  teacher.probe.l2: "0" against "1"')


@pytest.mark.parametrize("strange", [5, None, [], {}, {"kind": []}, {"head": ["probe"]}, {"head": {}}])
def test_identities_of_other_producers_do_no_harm(strange: Any) -> None:
    found = of({"teacher": strange, "views": strange, "precision": strange})
    assert found is not None
    assert "tasks" in found.fields
