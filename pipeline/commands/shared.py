"""What several commands have in common: options, and the line that goes on after an interrupt or a full disk.

Importing this loads neither torch, numpy nor h5py.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import click

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
    arguments = [*sys.argv[1:], *(word for word in extra if word not in sys.argv)]
    return shlex.join(["softlabel", *arguments])


def data_options(command: Command) -> Command:
    """How the images are found, as the argument `scan`: the same for every command that takes DATA."""

    @functools.wraps(command)
    def with_scan(*args: Any, **options: Any) -> Any:
        from data.options import ScanOptions

        scan = {name: options.pop(name) for name in ("split_file", "allow_duplicates", "skip_bad_images")}
        return command(*args, scan=ScanOptions(**scan), **options)

    return _with_options(
        cast("Command", with_scan),
        click.option("--split-file", type=FILE, help="Where the split of an unsplit DATA stands [DATA/splits.csv]."),
        click.option("--allow-duplicates", is_flag=True, help="Accept the same image in two splits or classes."),
        click.option("--skip-bad-images", is_flag=True, help="Leave out files that are no whole image."),
    )


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
