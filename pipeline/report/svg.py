"""A matplotlib figure as inline SVG that takes its colours and font from the page around it. Draws nothing itself.

The same figure gives the same bytes. matplotlib is used by its object API alone: no pyplot, no display, no global state
but for the settings of one call.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#000101", "#000102", "#000103"
STUDENT, TEACHER, TRAIN = "#000104", "#000105", "#000106"
_VARIABLES = {
    INK: "--ink", FAINT: "--faint", GRID: "--line", STUDENT: "--student", TEACHER: "--teacher", TRAIN: "--train",
}  # fmt: skip
"""Colours that stand for variables of the page, which has others at night."""
_SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "softlabel",
    "font.family": "DejaVu Sans",  # matplotlib's own, to measure with on every machine
    "font.size": 9,
    "axes.unicode_minus": False,
    "path.simplify": False,
}


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure without a background."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), facecolor="none")


def plain_axes(figure: Figure, title: str, left_in: float = 0.55, bottom_in: float = 0.45) -> Axes:
    """Axes with a title, a light grid and no frame, so far from the left and the lower edge of the figure.

    Margins are given: matplotlib's layout engines draw every figure twice.
    """
    width, height = figure.get_size_inches()
    right_in, top_in = 0.15, 0.3 if title else 0.1
    axes = figure.add_axes(
        (left_in / width, bottom_in / height, 1 - (left_in + right_in) / width, 1 - (bottom_in + top_in) / height),
        facecolor="none",
    )
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, length=0, labelsize=8)
    for side in axes.spines.values():
        side.set_visible(False)
    return axes


def to_svg(draw: Callable[[], Figure], name: str) -> str:
    """The inline SVG of the figure that `draw()` returns; `name` sets its ids apart from those of other figures."""
    import matplotlib
    from matplotlib.text import Text

    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        figure = draw()
        for text in figure.findobj(Text):  # class names are strangers' text, and may have a $
            text.set_parse_math(False)
        buffer = io.StringIO()
        # Letters that matplotlib's font lacks are drawn by the page's; only their width is guessed.
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), name)


def natural_width_px(svg: str) -> float:
    """The width at which its letters have the size that they were drawn with, in CSS pixels."""
    box = re.search(r'viewBox="0 0 ([\d.]+)', svg)
    assert box is not None
    return float(box[1]) * 96 / 72


def _inline(svg: str, name: str) -> str:
    """Without the header of a file, the style of a page, and fixed sizes; ids apart, colours and font by variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r'\1 role="img"', svg, count=1)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'url\(#([^)"]+)\)|href="#([^"]+)"', lambda found: _moved(found, name), svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return re.sub(r">\s+<", "><", svg).strip()


def _moved(found: re.Match[str], name: str) -> str:
    return f"url(#{name}-{found[1]})" if found[1] else f'href="#{name}-{found[2]}"'
