"""Whether an output can be written under a name, asked before the work that it is to hold. Writes nothing."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import SettingError


def check_output_file(out: str | Path) -> None:
    """SettingError where `out` is a folder, or where the folder around it does not exist."""
    if Path(out).is_dir():
        raise SettingError(f"{out} is a folder: name the file to write, such as {Path(out) / 'NAME'}")
    if not Path(out).absolute().parent.is_dir():
        raise SettingError(f"the folder of {out} does not exist: create it first")


def check_output_folder(out: str | Path) -> None:
    """SettingError where `out`, or a folder on the way to it, is a file."""
    for path in (Path(out), *Path(out).parents):
        if path.exists() and not path.is_dir():
            raise SettingError(f"{path} is a file, where a folder is to be written: choose another -o")
