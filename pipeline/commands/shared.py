"""What several commands have in common: options, and the line that goes on after an interrupt or a full disk.

Importing this loads neither torch, numpy nor h5py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from data.options import ScanOptions

Command = TypeVar("Command", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)
DEVICES = click.Choice(["auto", "cpu", "cuda", "mps"])


class Interrupted(click.ClickException):
    """Ctrl-C in something that can go on."""

    exit_code = 130

    def show(self, file: Any = None) -> None:
        """The line that goes on, on standard error."""
        click.echo(f"\nInterrupted; what is done stays. Go on with:\n  {self.message}", err=True)


@contextlib.contextmanager
def goes_on_with(line: Callable[[], str]) -> Iterator[None]:
    """Inside, Ctrl-C and a full disk end the command with the line that takes it up again."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(line()) from None
    except Exception as error:
        from cache.errors import CacheDiskFull

        if isinstance(error, CacheDiskFull):
            raise CacheDiskFull(f"{error}:\n  {line()}") from error
        raise


def same_command(*extra: str) -> str:
    """The command line of this process, with these words added where they are not in it."""
    from pipeline.commands.torchrun import command_words

    arguments = [*sys.argv[1:], *(word for word in extra if word not in sys.argv)]
    return f"{command_words()} {shlex.join(arguments)}"


def user_folder() -> Path:
    """Where this user's commands keep what they can do without: hashes, downloads, what teachers said of themselves."""
    from platformdirs import user_cache_path

    return user_cache_path("softlabel", appauthor=False)


def data_options(command: Command | None = None, *, beside: tuple[str, ...] = ()) -> Any:
    """How the images are found, as the argument `scan`: the same for every command that takes DATA.

    A command that has options of these names for itself lists them in `beside`; `share_table` says which are the
    images', too.
    """
    if command is None:
        return functools.partial(data_options, beside=beside)
    inner = command

    @functools.wraps(inner)
    def with_scan(*args: Any, **options: Any) -> Any:
        from data.options import ScanOptions

        given = {name: options.pop(name) for name in _DATA_OPTIONS if name not in beside}
        if given["fold"] is not None and "folds" in beside:
            given["folds"] = options["folds"]
        cache = user_folder()
        scan = ScanOptions(**given, memo=cache / "hashes.sqlite", downloads=cache / "data")
        return inner(*args, scan=scan, **options)

    flags = [option for name, option in _DATA_OPTIONS.items() if name not in beside]
    return _with_options(cast("Command", with_scan), *reversed(flags))


def share_table(
    data: Path, scan: ScanOptions, settings: dict[str, Any], *, has_columns: bool, alone: bool
) -> tuple[ScanOptions, dict[str, Any]]:
    """(scan, settings) of a command whose own `--csv` may be the table of the images, too, or be that of DATA.

    It is the images' table where their labels, splits or groups are named, and with `alone` where the command has
    no columns of its own to read from it.
    """
    from data.sources.resolve import described, is_data_set_file, is_download, is_table, look_for

    named = {name: settings[name] for name in ("csv", "image_column", "group_column") if settings.get(name)}
    nothing = {**settings, "csv": None, "image_column": None}
    if "csv" in named:
        settings = {**settings, "csv": look_for(named["csv"], data)}
        if not scan.columns and (has_columns or not alone):
            return scan, settings
        scan = dataclasses.replace(scan, **named)
        if not has_columns:
            return scan, nothing
        beside = scan.csv if is_table(data) or is_download(data) else described(data, scan).options.csv
        return scan, {**settings, "csv": beside}
    if not is_download(data) and not is_table(data) and not is_data_set_file(data):
        return scan, settings
    scan = dataclasses.replace(scan, **named)
    if is_download(data) or not has_columns:
        return scan, nothing
    known = described(data, scan).options
    return scan, {**settings, "csv": known.csv, "image_column": known.image_column}


def names(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...]:
    """`a,b` as ("a", "b"); a name with a comma in it is written in CSV's double quotes."""
    from data.options import split_commas

    found = split_commas(value or "")
    if any(not name for name in found):
        raise click.BadParameter(f"expected names with commas between them, got '{value}'", context, option)
    return found


def _all_names(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Those of an option that may be repeated."""
    return tuple(name for value in values for name in names(context, option, value))


_DATA_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "csv": click.option("--csv", type=FILE, help="Images by a table: its CSV file [DATA, if that is one]."),
    "image_column": click.option("--image-column", metavar="COLUMN", help="Its column of images [image_id, ...]."),
    "label_columns": click.option(
        "--label-column", "label_columns", metavar="COLUMN,...", multiple=True, callback=_all_names,
        help="Its columns of classes; each is a task.",
    ),
    "one_hot": click.option(
        "--one-hot", metavar="COLUMN,...", callback=names, help="Its columns of 0 and 1, each a class."
    ),
    "group_column": click.option(
        "--group-column", metavar="COLUMN", help="Its column of lesions or patients: no split tears them."
    ),
    "split_column": click.option("--split-column", metavar="COLUMN", help="Its column of splits."),
    "image_dirs": click.option(
        "--image-dir", "image_dirs", type=FILE, multiple=True, help="Where its images lie; repeatable [DATA]."
    ),
    "only": click.option(
        "--only", metavar="CLASS,...", multiple=True, callback=_all_names, help="Keep these classes; or TASK=CLASS."
    ),
    "max_per_class": click.option(
        "--max-per-class", type=click.IntRange(1), metavar="N", help="Keep so many of each class and split."
    ),
    "split_file": click.option("--split-file", type=FILE, help="Where the split of an unsplit DATA is kept."),
    "split_seed": click.option("--split-seed", type=click.IntRange(0), metavar="N", help="Of that split [0]."),
    "folds": click.option(
        "--folds", type=click.IntRange(2, 100), metavar="N", help="Cut an unsplit DATA into so many parts instead."
    ),
    "fold": click.option("--fold", type=click.IntRange(1), metavar="N", help="The part that is test [all train]."),
    "allow_duplicates": click.option(
        "--allow-duplicates", is_flag=True, help="Accept the same image in two splits or classes."
    ),
    "allow_group_leaks": click.option("--allow-group-leaks", is_flag=True, help="Accept a group in two splits."),
    "skip_bad_images": click.option("--skip-bad-images", is_flag=True, help="Leave out files that are no whole image."),
}  # fmt: skip
"""Setting of `ScanOptions` -> its option, in the order of --help."""


def device_options(command: Command) -> Command:
    """Where it runs."""
    return _with_options(
        command,
        click.option("--workers", type=click.IntRange(0), help="Loader processes [0 on a CPU, else cores - 1]."),
        click.option("--device", type=DEVICES, default="auto", show_default=True, help="auto = cuda, mps or cpu."),
    )


def _with_options(command: Command, *options: Callable[[Command], Command]) -> Command:
    for option in options:
        command = option(command)
    return command
