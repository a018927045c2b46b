"""Settings: ranges, words, types; the flags of the command line are these and no others."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.commands.train import train
from pipeline.errors import SettingError
from pipeline.training.config import _RANGES, CHOICES, FLAGS, TrainConfig

FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}


def test_the_command_line_has_a_flag_for_every_setting_with_its_default_and_words() -> None:
    flags = {option.name: option for option in train.params}
    for name, field in FIELDS.items():
        assert flags[name].default == field.default, name
    for name, words in CHOICES.items():
        assert tuple(flags[name].type.choices) == words


def test_every_number_has_a_range_and_every_default_is_in_it() -> None:
    numbers = {name for name, field in FIELDS.items() if type(field.default) in (int, float, type(None))}
    assert numbers == set(_RANGES)
    TrainConfig()


@pytest.mark.parametrize("name", sorted(_RANGES))
def test_a_number_out_of_range_says_what_it_got(name: str) -> None:
    low, high = _RANGES[name]
    kind = int if type(FIELDS[name].default) is int else float
    for value in map(kind, (low - 1, high + 1)):
        with pytest.raises(SettingError) as caught:
            TrainConfig(**{name: value})
        flag = f" ({FLAGS[name]})" if name in FLAGS else ""
        assert str(caught.value).startswith(f"{name}{flag} must be in ")
        assert f", got {value}" in str(caught.value)


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_an_unknown_word_names_those_there_are(name: str) -> None:
    with pytest.raises(SettingError, match=f"{name} must be {' or '.join(CHOICES[name])}, got 'nonsense'"):
        TrainConfig(**{name: "nonsense"})


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("epochs", 2.5, "a whole number"), ("epochs", True, "a whole number"), ("alpha", "0.3", "a number"),
        ("teacher", 1, "true or false"), ("student", 5, "text"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(name: str, value: object, kind: str) -> None:
    with pytest.raises(SettingError, match=f"{name} must be {kind}, got {value!r}"):
        TrainConfig(**{name: value})


def test_a_whole_number_will_do_where_a_number_is_asked() -> None:
    assert TrainConfig(alpha=1).alpha == 1


def test_fresh_views_need_hard_labels_alone() -> None:
    with pytest.raises(SettingError, match="pass --no-teacher as well"):
        TrainConfig(fresh_views=True)
    with pytest.raises(SettingError, match="set one of them"):
        TrainConfig(fresh_views=True, teacher=False, n_views=2)
    assert TrainConfig(fresh_views=True, teacher=False).fresh_views


def test_a_percentage_is_asked_about() -> None:
    with pytest.raises(SettingError, match=r"alpha must be in 0\.\.1, got 30; did you mean 0\.3\?"):
        TrainConfig(alpha=30)


def test_the_flags_that_have_other_names_are_those_of_the_command_line() -> None:
    flags = {option.name: option.opts[0] for option in train.params if option.name in FIELDS}
    other = {name: flag for name, flag in flags.items() if flag != f"--{name.replace('_', '-')}"}
    assert other == FLAGS
