"""Class names become prompts: cleaned, expanded where they are known codes, refused where nobody could know them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import SettingError
from pipeline.tasks import Tasks
from pipeline.teachers.prompts import DIAGNOSIS_CODES, PromptSource, clean_class_name, default_prompts, read_prompts


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("1. Eczema 1677", "eczema"),
        ("2. Melanoma 15.75k", "melanoma"),
        ("3. Atopic Dermatitis - 1.25k", "atopic dermatitis"),
        ("10. Warts Molluscum and other Viral Infections - 2103", "warts molluscum and other viral infections"),
        ("Benign_Keratosis", "benign keratosis"),
        ("04-basal cell  carcinoma", "basal cell carcinoma"),
        ("7_nevus_1,234", "nevus"),
        ("  Melanoma ", "melanoma"),
        ("Melanocytic Nevi (NV) - 7970", "melanocytic nevi (nv)"),
        ("nv", "nv"),
        ("5", "5"),
    ],
)
def test_numbering_and_counts_are_cleaned_away(name: str, cleaned: str) -> None:
    assert clean_class_name(name) == cleaned


def test_default_prompts_are_bare_condition_names_in_the_order_of_the_classes() -> None:
    found = default_prompts(["1. Eczema 1677", "acne", "Lichen_Planus"])
    assert list(found.items()) == [
        ("1. Eczema 1677", ("eczema",)),
        ("acne", ("acne",)),
        ("Lichen_Planus", ("lichen planus",)),
    ]


@pytest.mark.parametrize("code", ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"])
def test_every_ham10000_code_is_expanded(code: str) -> None:
    (expanded,) = default_prompts([code])[code]
    assert expanded == DIAGNOSIS_CODES[code]
    assert len(expanded) > len(code) + 3
    assert default_prompts([f"3. {code.upper()} 120"]) == {f"3. {code.upper()} 120": (expanded,)}


def test_other_codes_are_refused_all_at_once_with_the_way_out() -> None:
    with pytest.raises(SettingError, match="--prompts FILE") as caught:
        default_prompts(["melanoma", "xkz", "c4", "bcc", "tschm", "class_a1b"])
    text = str(caught.value)
    assert all(name in text for name in ("xkz", "c4"))
    assert not any(name in text for name in ("melanoma", "bcc"))


def test_classes_that_would_share_a_prompt_are_refused() -> None:
    with pytest.raises(SettingError, match=r"same prompt \(melanoma\): pass --prompts"):
        default_prompts(["mel", "Melanoma", "nevus"])
    with pytest.raises(SettingError, match="same prompt"):
        default_prompts(["grade 1", "grade 2"])


def prompts_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prompts.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_gives_one_or_several_prompts_a_class_in_the_order_of_the_classes(tmp_path: Path) -> None:
    path = prompts_file(tmp_path, "nv: a mole\nmel:\n  - melanoma\n  - a photo of melanoma, ü\n")
    found = read_prompts(path, ["mel", "nv"])
    assert list(found.items()) == [("mel", ("melanoma", "a photo of melanoma, ü")), ("nv", ("a mole",))]


def test_yaml_words_stay_the_texts_they_are(tmp_path: Path) -> None:
    path = prompts_file(tmp_path, "no: nothing\n1.0: first\nyes: true\n0012: null\n")
    expected = {"no": ("nothing",), "1.0": ("first",), "yes": ("true",), "0012": ("null",)}
    assert read_prompts(path, list(expected)) == expected


def test_every_missing_unknown_or_empty_class_is_named_at_once(tmp_path: Path) -> None:
    path = prompts_file(tmp_path, "melanomma: dark\nnv: ''\ndf: []\nvasc: [red, '  ']\nbkl: [[nested]]\n")
    with pytest.raises(SettingError) as caught:
        read_prompts(path, ["melanoma", "nv", "df", "vasc", "bkl", "bcc"])
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "no prompt for 'melanoma'" in text
    assert "no prompt for 'bcc'" in text
    assert "unknown class 'melanomma'; did you mean 'melanoma'?" in text
    for name in ("nv", "df", "vasc", "bkl"):
        assert f"'{name}' needs a text or a list of texts" in text


def test_a_mapping_in_the_place_of_a_text_is_refused(tmp_path: Path) -> None:
    """A colon in a prompt without quotes makes one; its keys alone would be a silent other prompt."""
    path = prompts_file(tmp_path, "nv: a mole\nmel:\n  a photo of: melanoma\n")
    with pytest.raises(SettingError, match="'mel' needs a text or a list of texts"):
        read_prompts(path, ["mel", "nv"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- mel\n- nv\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("just words", "must be a mapping"),
        ("mel: [open\nnv: x\n", "is not YAML"),
        ("mel: a: b\n", "is not YAML"),
        ("? [a, b]\n: x\n", "is not YAML"),
        ("mel: !!python/object/apply:os.getcwd []\nnv: x\n", "needs a text|is not YAML"),
        ('mel: "\\ud800"\nnv: x\n', "'mel' needs a text"),
        ("[" * 3000, "is not YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = prompts_file(tmp_path, text)
    with pytest.raises(SettingError, match=reason) as caught:
        read_prompts(path, ["mel", "nv"])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"cannot read the prompts in .*none\.yaml: No such file"):
        read_prompts(tmp_path / "none.yaml", ["mel"])
    (tmp_path / "bytes.yaml").write_bytes(b"mel: caf\xe9\n")
    with pytest.raises(SettingError, match="is not YAML"):
        read_prompts(tmp_path / "bytes.yaml", ["mel"])


def test_templates_multiply_the_prompts_of_names_and_files_alike(tmp_path: Path) -> None:
    two = ("a photo of {}", "{}, dermatoscopy")
    found = PromptSource(templates=two).texts_of(["mel", "nv"])
    assert found == {
        "mel": ("a photo of melanoma", "melanoma, dermatoscopy"),
        "nv": ("a photo of melanocytic nevus", "melanocytic nevus, dermatoscopy"),
    }
    file = tmp_path / "prompts.yaml"
    file.write_text("mel: [dark skin, black mole]\nnv: mole")
    found = PromptSource(file=file, templates=("a {}",)).texts_of(["mel", "nv"])
    assert found == {"mel": ("a dark skin", "a black mole"), "nv": ("a mole",)}


@pytest.mark.parametrize("template", ["a photo", "{} {}", "{name}", "{} {", ""])
def test_a_template_without_exactly_one_place_for_the_prompt_is_refused(template: str) -> None:
    with pytest.raises(SettingError, match=r"exactly one \{\}"):
        PromptSource(templates=(template,))


@pytest.mark.parametrize("classes", [["ACX", "melanoma"], ["CT", "MR"], ["NEVX", "mole"]])
def test_abbreviations_that_are_in_no_table_are_refused(classes: list[str]) -> None:
    with pytest.raises(SettingError, match=f"look like codes.*{classes[0]}"):
        default_prompts(classes)


def test_pad_ufes_codes_are_expanded_and_short_words_are_words() -> None:
    assert default_prompts(["ACK", "NEV"]) == {"ACK": ("actinic keratosis",), "NEV": ("melanocytic nevus",)}
    assert default_prompts(["cat", "dog"]) == {"cat": ("cat",), "dog": ("dog",)}


def test_a_template_of_bytes_that_are_no_text_is_refused() -> None:
    with pytest.raises(SettingError, match="a template must be UTF-8"):
        PromptSource(templates=("\udcff {}",))


TWO = Tasks({"modality": ("CT", "MR"), "organ": ("chest", "head")})


def test_prompts_of_several_tasks_stand_under_each_task(tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text("organ:\n  head: a head\n  chest: [a chest, a thorax]\nmodality: {CT: tomography, MR: resonance}\n")
    assert PromptSource(file=path).texts_of(TWO) == {
        "modality: CT": ("tomography",), "modality: MR": ("resonance",),
        "organ: chest": ("a chest", "a thorax"), "organ: head": ("a head",),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modality: {CT: a, MR: b}\n", r"no prompt for 'organ: chest'; no prompt for 'organ: head'"),
        ("modality: {CT: a, MR: b}\norgans: {chest: c, head: d}\n", r"found 'organs'; did you mean 'organ'\?"),
        ("CT: a\nMR: b\n", r"expected the tasks modality, organ, each with its classes and their prompts; found 'CT'"),
        ("modality: {CT: a, MRI: b}\norgan: {chest: c, head: d}\n", r"unknown class 'modality: MRI'; did you mean"),
    ],
)
def test_a_file_that_does_not_fit_the_tasks_says_why(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(SettingError, match=said):
        PromptSource(file=path).texts_of(TWO)


def test_a_class_of_two_tasks_needs_prompts_that_tell_them_apart() -> None:
    with pytest.raises(SettingError, match="several tasks have a class none, and would get the same prompt"):
        PromptSource().texts_of(Tasks({"ulcer": ("none", "large"), "hair": ("none", "thick")}))


def test_class_names_that_are_codes_ask_for_prompts_under_each_task() -> None:
    with pytest.raises(SettingError, match=r"codes.*: CT, MR.*, those of each task under its name: modality, organ$"):
        PromptSource().texts_of(TWO)
