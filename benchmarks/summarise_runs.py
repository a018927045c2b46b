"""Mean and standard deviation over seeds of the test scores that `softlabel evaluate --json` wrote.

Run: python benchmarks/summarise_runs.py WORK, where WORK/<arm>-<seed>/test.json stand.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

SCORES = ("accuracy", "balanced_accuracy", "macro_f1")


def main() -> None:
    found: dict[str, list[dict[str, float]]] = {}
    for path in sorted(Path(sys.argv[1]).glob("*-*/test.json")):
        result = json.loads(path.read_text())["splits"]["test"]
        arm = path.parent.name.rsplit("-", 1)[0]
        found.setdefault(arm, []).append(result["student"])
        if result["teacher"]:
            found.setdefault(f"{arm}: its teacher", []).append(result["teacher"])
    print(f"| arm | seeds | {' | '.join(SCORES)} |\n|---|---|{'---|' * len(SCORES)}")
    for arm, runs in found.items():
        cells = []
        for score in SCORES:
            values = [run[score] for run in runs]
            spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        print(f"| {arm} | {len(runs)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
