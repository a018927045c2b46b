"""Count what a campaign found by row and column, and tell it as a table and as JSON."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = str | tuple[str, ...]
TOLD_DETAILS = 20


class Report:
    """Numbers by row and column, and a sentence for each finding that should not be."""

    def __init__(self, *columns: str) -> None:
        self.columns = columns
        self.counts: Counter[tuple[Row, str]] = Counter()
        self.details: list[str] = []

    def add(self, row: Row, column: str, n: int = 1, detail: str = "") -> None:
        """Count; the detail says where, for a number that should be 0."""
        self.counts[row, column] += n
        if n and detail:
            self.details.append(f"{detail}: {column} {n}")

    @property
    def rows(self) -> list[Row]:
        """In the order in which they came up."""
        return list(dict.fromkeys(row for row, _ in self.counts))

    def line(self, rows: Sequence[Row]) -> dict[str, int]:
        """Column -> number, summed over rows."""
        return {column: sum(self.counts[row, column] for row in rows) for column in self.columns}

    def to_table(self, header: list[str], rows: Sequence[Row]) -> str:
        """Markdown; the header has titles of the row's parts, then those of the columns."""
        named = [([row] if isinstance(row, str) else [*row], [row]) for row in rows]
        named.append((["**all**", *[""] * (len(header) - len(self.columns) - 1)], rows))
        lines = [header, ["---"] * len(header)]
        lines += [[*names, *map(str, self.line(summed).values())] for names, summed in named]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def tell(self, file: Path | None, result: dict[str, Any]) -> None:
        """Some details on standard error, all of them and the result in a JSON file if one is wanted."""
        for detail in self.details[:TOLD_DETAILS]:
            print(detail, file=sys.stderr)
        if file is not None:
            file.write_text(json.dumps({**result, "details": self.details}), "utf-8")
