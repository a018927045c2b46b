"""The command line: what holds for every command. The commands themselves are in `pipeline.commands`.

Importing this module loads neither torch, numpy nor h5py, so that --help and completion answer at once.
Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted (with the line that goes on).
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import io
import logging
import os
import sys

import click

from pipeline.commands import torchrun
from pipeline.commands.benchmark import benchmark
from pipeline.commands.cache import cache
from pipeline.commands.course import course
from pipeline.commands.data import data
from pipeline.commands.demo import demo
from pipeline.commands.evaluate import evaluate
from pipeline.commands.export import export
from pipeline.commands.imports import cache_import
from pipeline.commands.predict import predict
from pipeline.commands.repair import probe, rehead
from pipeline.commands.report import report
from pipeline.commands.store import cache_list, cache_pull, cache_push
from pipeline.commands.teacher import teacher
from pipeline.commands.train import train


class LineHandler(logging.Handler):
    """Log records as plain lines on standard error, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; one that a full disk under a redirected log refuses is lost, and the run goes on.

        Class names and prompts come from strangers' files: their terminal escapes are shown, not obeyed.
        """
        from tqdm import tqdm

        from cache.errors import printable

        rank = torchrun.place().rank
        said = "\n".join(map(printable, self.format(record).split("\n")))
        with contextlib.suppress(OSError):
            tqdm.write(f"rank {rank}: {said}" if rank else said, file=sys.stderr)


def run(arguments: list[str]) -> int:
    """The whole command line; returns the exit code, but to nobody where one of several ranks failed."""
    torchrun.silence_others()
    code = _run(arguments)
    torchrun.leave(code)
    return code


def _run(arguments: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name that the terminal cannot show must not end a command
            stream.reconfigure(errors="backslashreplace")
    try:
        cli.main(arguments, prog_name="softlabel", standalone_mode=False)
    except click.ClickException as error:
        if torchrun.may_show(error.exit_code):
            error.show()
        return error.exit_code
    except click.exceptions.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, click.Abort):
        if torchrun.may_show(130):
            click.echo("\nInterrupted.", err=True)
        return 130
    except BrokenPipeError:
        # Nobody reads on (`| head`): nothing is left to say, and the interpreter must not try to flush it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _expected_errors() as error:
        if "--debug" in arguments:
            raise
        from cache.errors import printable

        said = torchrun.told("\n".join(map(printable, f"Error: {_explained(error)}".split("\n"))))
        if said is not None:
            with contextlib.suppress(OSError):
                click.echo(said, err=True)
        return 1
    return 0


def give_up_full_logs() -> None:
    """Drop what a full disk under a redirected standard error never took; the interpreter would exit with 120 on it."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _explained(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error}: the disk is full; free some space, then run the same command again"
    return str(error)


def _expected_errors() -> tuple[type[Exception], ...]:
    """The error bases of the packages that this process has loaded; importing them here would slow every start."""
    bases = (("data.errors", "DataError"), ("cache.errors", "CacheError"), ("pipeline.errors", "PipelineError"))
    known = tuple(getattr(sys.modules[module], name) for module, name in bases if module in sys.modules)
    # OSError: a folder without permission, a full disk; its text names the file.
    return (*known, OSError)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(importlib.metadata.version("softlabel"), message="softlabel %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--no-allocator-tuning", is_flag=True, help="Leave glibc's allocator as it is (training: 1.2x slower).")
@click.pass_context
def cli(context: click.Context, debug: bool, no_allocator_tuning: bool) -> None:
    """Offline knowledge distillation: run a big teacher once, train small students from its cached logits.

    \b
    softlabel demo                            see the whole of it, without data or download
    softlabel data check DATA                 are the images ready? Splits, classes, bad files, leaks
    softlabel teacher fit DATA --from M -o T  before it, if you like: a teacher that knows your images
    softlabel cache build DATA -o t.h5        stage one: the teacher's logits of every view
    softlabel cache verify t.h5               is it what it was? (also: cache info, merge, repair)
    softlabel cache push t.h5 URL             share it with the team (also: cache list, cache pull)
    softlabel cache probe t.h5 DATA -o p.h5   other logits from its embeddings (also: cache rehead)
    softlabel train DATA t.h5 -o RUN          stage two: a student, no teacher in memory
    softlabel evaluate RUN DATA               what it is worth
    softlabel report RUN DATA                 one HTML page about it
    softlabel export RUN -o student.pt        one file: TorchScript, ONNX (.onnx), torch.export (.pt2)
    softlabel predict student.pt IMAGE...     use it
    softlabel benchmark student.pt            what it costs: milliseconds, memory, bytes
    softlabel course submit FILE --server URL hand it in (also: course status, course leaderboard)

    DATA is a folder: DATA/<split>/<class>/* or DATA/<class>/*; or a table (--csv), a data set file (.yaml), or a
    public data set (torchvision:NAME, hf:NAME): docs/data.md.
    """
    torchrun.refuse_under_torchrun(context, ("cache", "train"))
    for package in ("cache", "data", "pipeline"):
        logger = logging.getLogger(package)
        logger.handlers = [LineHandler(logging.NOTSET if torchrun.place().is_first else logging.WARNING)]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    if not no_allocator_tuning:
        from pipeline.process import tune_allocator

        tune_allocator()


for command in (cache_import, probe, rehead, cache_push, cache_pull, cache_list):
    cache.add_command(command)
for command in (demo, data, teacher, cache, train, evaluate, export, predict, benchmark, report, course):
    cli.add_command(command)
