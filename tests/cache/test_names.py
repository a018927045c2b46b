"""Names in a stranger's file: which are paths below a folder, and harmless to show."""

import numpy as np
import pytest

from cache.errors import CacheDamaged
from cache.names import refuse_names, refuse_texts


@pytest.mark.parametrize("name", ["a.jpg", "mel/ä 0.jpg", "a/b/c/..d.png", "~x/$(y)/{z}.jpg", "日本/犬.jpg", "..."])
def test_relative_paths_of_any_language_are_fine(name):
    refuse_names(np.array([b"a.jpg", name.encode()]))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"/etc/passwd", "no relative path"),
        (b"C:/x.jpg", "no relative path"),
        (b"a\\b.jpg", "no relative path"),
        (b"\\\\host\\share", "no relative path"),
        (b"../x.jpg", "out of its folder"),
        (b"a/../x.jpg", "out of its folder"),
        (b"a/./x.jpg", "out of its folder, or nowhere"),
        (b"a//x.jpg", "nowhere"),
        (b"a/", "nowhere"),
        (b"", "nowhere"),
        (b"\xff\xfe.jpg", "no UTF-8"),
        (b"\x1b]0;owned\x07", "not printable"),
        (b"a\nError: b", "not printable"),
        ("a\u202egpj.exe".encode(), "not printable"),
        ("a\u200bb".encode(), "not printable"),
        (b"n" * 256, "longer"),
        (b"n/" * 600 + b"n", "longer"),
    ],
)
def test_other_names_are_refused_in_a_short_line(name, reason):
    with pytest.raises(CacheDamaged, match=reason) as caught:
        refuse_names(np.array([b"a.jpg", name]))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["mel\x1b[31m", "n" * 501, "a\nb", "\u202e"])
def test_class_names_that_cannot_be_shown_are_refused(make, name):
    refuse_texts(make.manifest())
    tasks = [{"name": "class", "classes": ["nv", name]}]
    with pytest.raises(CacheDamaged, match="class or task name") as caught:
        refuse_texts(make.manifest(tasks=tasks))
    assert str(caught.value).isprintable()
