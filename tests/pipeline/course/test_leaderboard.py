"""A page's table as text: whatever stands in the page, in time that grows with its length."""

from __future__ import annotations

import html
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.course.leaderboard import aligned, leaderboard_of
from pipeline.course.protocol import BadAnswer

from .loopback import PAGE

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12).map(lambda text: " ".join(text.split()))


def test_the_table_has_the_columns_of_the_page() -> None:
    found = leaderboard_of(PAGE)
    assert found.columns == ("Rank", "Team", "F1", "Size (MB)")
    assert found.rows == (("1", "Ärzte <3", "0.712", "1.4"), ("2", "nevus\x1b[31m", "0.70", "24.9"))


@given(st.lists(st.lists(texts, min_size=3, max_size=3).filter(any), max_size=4))
def test_every_cell_comes_back_from_its_html(rows: list[list[str]]) -> None:
    cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    page = f"<table><tr><th>a<th>b<th>c</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
    if not rows:
        with pytest.raises(BadAnswer, match="no table"):
            leaderboard_of(page)
    else:
        assert leaderboard_of(page).rows == tuple(map(tuple, rows))


@pytest.mark.parametrize(
    ("page", "columns", "rows"),
    [
        ("<TABLE><TR><TH>r<TH>team<TR><TD>1<TD>x", ("r", "team"), [("1", "x")]),  # end tags left out
        ("<table><tr><td>1<td>x</table>", ("column 1", "column 2"), [("1", "x")]),  # no header
        ("<table><tr><th>r<th>t<tr><td>1<td>x<td>new</table>", ("r", "t", "column 3"), [("1", "x", "new")]),
        ("<table><tr><th>r<th>t<th>u<tr><td>1</table>", ("r", "t", "u"), [("1", "", "")]),
        ("<table><tr><th>t<th>t<tr><td>1<td>x</table>", ("t", "t (2)"), [("1", "x")]),
        ("<table><tr><th>r<th>t<tr><th>1<td>x</table>", ("r", "t"), [("1", "x")]),  # ranks as headings
        ("<table><tr><td>menu</table><table><tr><th>r<th>t<tr><td>1<td>x</table>", ("r", "t"), [("1", "x")]),
        ("<!--<table><tr><td>1<td>2</table>--><table><tr><th>r<th>t<tr><td>1<td>x</table>", ("r", "t"), [("1", "x")]),
        (
            "<table><tr><th>r<th>t<tr><td>1<td><a href='/x'>A&amp;B<br>C</a> <script>x<y()</script></table>",
            ("r", "t"), [("1", "A&B C")],
        ),
        ("<table><tr><th>r<th>t<tr></tr><tr><td>1<td>&lt;b&gt; < 3</table>", ("r", "t"), [("1", "<b> < 3")]),
    ],
)  # fmt: skip
def test_html_as_people_write_it(page: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    found = leaderboard_of(page)
    assert (found.columns, list(found.rows)) == (columns, rows)


@pytest.mark.parametrize(
    "page", ["", "no", "<table>", "<table></table>", "<table><tr><th>r<th>t</table>", "<tr><td>1<td>2", "<table><td>1"]
)
def test_a_page_without_a_table_of_teams_is_said_to_be_one(page: str) -> None:
    with pytest.raises(BadAnswer, match="no table of teams"):
        leaderboard_of(page)


@pytest.mark.parametrize(
    "piece", ["<a ", "<", "<!--", "</", "<td>", "<table>", "<a b='", "&#", "<script>", "<table><tr>"]
)
def test_no_page_takes_long(piece: str) -> None:
    """Python's own parser takes a minute for 60 kB of the first."""
    begun = time.perf_counter()
    with pytest.raises(BadAnswer):
        leaderboard_of(piece * (250_000 // len(piece)))
    assert time.perf_counter() - begun < 3


def test_columns_are_aligned_and_escapes_shown() -> None:
    rows = [("rank", "team", "F1"), ("1", "神经", "0.7"), ("10", "e\u0301\x1b[2J\u202e", "12.25"), ("2", "x" * 99, "")]
    assert aligned(rows).splitlines() == [
        f"rank  {'team':<60}     F1",
        f"   1  神经{' ' * 56}    0.7",
        f"  10  e\u0301\\x1b[2J\\u202e{' ' * 46}  12.25",
        f"   2  {'x' * 57}...",
    ]
