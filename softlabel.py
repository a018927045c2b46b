"""The `softlabel` command: checks that the packages it starts are its own, then hands over to `pipeline.cli`.

`data`, `cache` and `pipeline` are names that a user's own files may have; the check says which file is in the way.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("data", "cache", "pipeline")


def shadowing(expected_folder: Path) -> list[str]:
    """A line for each package that Python would take from elsewhere than `expected_folder`."""
    problems = []
    for name in PACKAGES:
        spec = find_spec(name)
        own = expected_folder / name
        if spec is None:
            problems.append(f"'{name}' is not installed")
        elif spec.origin is None or Path(spec.origin).resolve() != (own / "__init__.py").resolve():
            where = spec.origin or ", ".join(spec.submodule_search_locations or [])
            problems.append(f"'{name}' is taken from {where}, expected {own}")
    return problems


def main() -> None:
    """Run the command line and exit with its code."""
    problems = shadowing(Path(__file__).parent)
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        sys.exit(
            f"Error: other files have the names of softlabel's packages:\n{lines}\n"
            "Rename them, or take their folder off PYTHONPATH"
        )
    from pipeline.cli import give_up_full_logs, run

    try:
        code = run(sys.argv[1:])
    finally:
        give_up_full_logs()
    sys.exit(code)


if __name__ == "__main__":
    main()
