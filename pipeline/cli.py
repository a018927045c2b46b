"""The command line: each command parses, calls one function of `pipeline`, and prints its result.

Importing this module loads neither torch, numpy nor h5py, so that --help and completion answer at once.
Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted (with the line that goes on).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

Command = TypeVar("Command", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)
DEVICES = click.Choice(["auto", "cpu", "cuda", "mps"])


class Interrupted(click.ClickException):
    """Ctrl-C in something that can go on."""

    exit_code = 130

    def show(self, file: Any = None) -> None:
        """The line that goes on, on standard error."""
        click.echo(f"\nInterrupted; what is done stays. Go on with:\n  {self.message}", err=True)


class LineHandler(logging.Handler):
    """Log records as plain lines on standard error, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def run(arguments: list[str]) -> int:
    """The whole command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name that the terminal cannot show must not end a command
            stream.reconfigure(errors="backslashreplace")
    try:
        cli.main(arguments, prog_name="softlabel", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nInterrupted.", err=True)
        return 130
    except BrokenPipeError:
        # Nobody reads on (`| head`): nothing is left to say, and the interpreter must not try to flush it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _expected_errors() as error:
        if "--debug" in arguments:
            raise
        click.echo(f"Error: {error}", err=True)
        return 1
    return 0


def _expected_errors() -> tuple[type[Exception], ...]:
    """The error bases of the packages that this process has loaded; importing them here would slow every start."""
    bases = (("data.errors", "DataError"), ("cache.errors", "CacheError"), ("pipeline.errors", "PipelineError"))
    known = tuple(getattr(sys.modules[module], name) for module, name in bases if module in sys.modules)
    # OSError: a folder without permission, a full disk; its text names the file.
    return (*known, OSError)


@contextlib.contextmanager
def _goes_on_with(line: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(line()) from None


def _same_command(*extra: str) -> str:
    arguments = [*sys.argv[1:], *(word for word in extra if word not in sys.argv)]
    return shlex.join(["softlabel", *arguments])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(importlib.metadata.version("softlabel"), message="softlabel %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--no-allocator-tuning", is_flag=True, help="Leave glibc's allocator as it is (training: 1.2x slower).")
def cli(debug: bool, no_allocator_tuning: bool) -> None:
    """Offline knowledge distillation: run a big teacher once, train small students from its cached logits.

    \b
    softlabel demo                          see the whole of it, without data or download
    softlabel cache build DATA -o t.h5      stage one: the teacher's logits of every view
    softlabel train DATA t.h5 -o RUN        stage two: a student, no teacher in memory
    softlabel evaluate RUN DATA             what it is worth
    softlabel export RUN -o student.pt      one TorchScript file
    softlabel predict student.pt IMAGE...   use it

    DATA is a folder: DATA/<split>/<class>/* or DATA/<class>/*.
    """
    for package in ("cache", "data", "pipeline"):
        logger = logging.getLogger(package)
        logger.handlers = [LineHandler()]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    if not no_allocator_tuning:
        from pipeline.process import tune_allocator

        tune_allocator()


def data_options(command: Command) -> Command:
    """How the images are found: the same for every command that takes DATA."""
    options = (
        click.option("--split-file", type=FILE, help="Where the split of an unsplit DATA stands [DATA/splits.csv]."),
        click.option("--allow-duplicates", is_flag=True, help="Accept the same image in two splits or classes."),
    )
    for option in options:
        command = option(command)
    return command


def device_options(command: Command) -> Command:
    """Where it runs."""
    options = (
        click.option("--workers", type=click.IntRange(0), help="Loader processes [0 on a CPU, else cores - 1]."),
        click.option("--device", type=DEVICES, default="auto", show_default=True, help="auto = cuda, mps or cpu."),
    )
    for option in options:
        command = option(command)
    return command


@cli.group()
def cache() -> None:
    """Build and look at teacher caches (stage one)."""


@cache.command("build")
@click.argument("data", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="The cache to write, resume or extend.")
@click.option("--teacher", default="google/medsiglip-448", show_default=True, help="Folder or Hugging Face name.")
@click.option("--views", type=click.IntRange(1, 65_535), default=8, show_default=True, help="Views of a train image.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the views.")
@click.option("--prompts", type=FILE, help="YAML: class -> prompt or list of prompts [the class names].")
@click.option(
    "--precision", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto", show_default=True,
    help="auto = fp16 on a GPU, fp32 on a CPU.",
)  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), help="Views in a forward pass [64 on a GPU, else 16].")
@device_options
@data_options
def cache_build(data: Path, out: Path, split_file: Path | None, allow_duplicates: bool, **settings: Any) -> None:
    """Run the teacher once over every view of DATA and write its logits and embeddings.

    Train images get all views, images of other splits the clean one. Repeating the command resumes an interrupted
    build, and adds images or views that are new.
    """
    with _goes_on_with(_same_command):
        from pipeline.build import BuildConfig, build_cache

        result = build_cache(
            data, out, BuildConfig(**settings), split_file=split_file, allow_duplicates=allow_duplicates
        )
    speed = f", {result.n_computed / result.wall_s:.1f} views/s" if result.n_computed else ""
    click.echo(
        f"{out}: {result.n_rows:,} views of {result.n_samples:,} images "
        f"({result.n_computed:,} computed now in {result.wall_s:.0f} s{speed})"
    )


@cache.command("info")
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def cache_info(file: Path, as_json: bool) -> None:
    """What a cache holds and which teacher it is from."""
    from pipeline.info import describe_cache, describe_cache_as_text

    click.echo(json.dumps(describe_cache(file), indent=1) if as_json else describe_cache_as_text(file))


@cli.command()
@click.argument("data", type=FILE)
@click.argument("cache_file", metavar="CACHE", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="The run folder to write.")
@click.option("--student", default="shufflenet_v2_x1_0", show_default=True, help="Any torchvision classifier.")
@click.option("--student-size", "student_size_px", type=int, default=224, show_default=True, help="Pixels.")
@click.option("--epochs", type=int, default=40, show_default=True)
@click.option("--temperature", type=float, default=4.0, show_default=True, help="T of the soft loss.")
@click.option("--alpha", type=float, default=0.3, show_default=True, help="Weight of the hard loss; soft has the rest.")
@click.option("--lr", "lr_peak", type=float, default=1e-3, show_default=True, help="Learning rate after warm-up.")
@click.option("--batch-size", type=int, default=32, show_default=True)
@click.option("--budget-mb", type=float, default=25.0, show_default=True, help="Largest exported file, 1e6 bytes.")
@click.option("--val-fraction", type=float, default=0.15, show_default=True, help="Used where DATA has no val split.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--teacher/--no-teacher", default=True, help="Without: hard labels only, on the same views.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@device_options
@data_options
@click.pass_context
def train(
    context: click.Context, data: Path, cache_file: Path, out: Path, resume: bool, device: str, workers: int | None,
    split_file: Path | None, allow_duplicates: bool, **settings: Any,
) -> None:  # fmt: skip
    """Train a student on the cached views and logits of DATA. No teacher is loaded.

    Validates on the val split, or on a part of train; never on test.
    """
    with _goes_on_with(lambda: _same_command("--resume") if (out / "last.pt").exists() else _same_command()):
        from pipeline.train import TrainConfig, saved_config
        from pipeline.train import train as run_training

        if resume:
            named = [name for name in settings if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
            config = dataclasses.replace(saved_config(out), **{name: settings[name] for name in named})
        else:
            config = TrainConfig(**settings)
        result = run_training(
            data, cache_file, out, config, resume=resume, device=device, workers=workers,
            split_file=split_file, allow_duplicates=allow_duplicates,
        )  # fmt: skip
    click.echo(f"{out}: best epoch {result.best_epoch}, val macro F1 {result.best_macro_f1:.3f}, {result.wall_s:.0f} s")


@cli.command()
@click.argument("model", type=FILE)
@click.argument("data", type=FILE)
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True)
@click.option("--cache", "cache_file", type=FILE, help="Where the teacher's answers stand [the run's own cache].")
@click.option("--json", "json_file", type=click.Path(path_type=Path, allow_dash=True), help="Write JSON (- = print).")
@device_options
@data_options
def evaluate(
    model: Path, data: Path, split: str, cache_file: Path | None, json_file: Path | None, device: str,
    workers: int | None, split_file: Path | None, allow_duplicates: bool,
) -> None:  # fmt: skip
    """Measure MODEL, a run folder or an exported file, on a split of DATA."""
    from pipeline.errors import OutputExists
    from pipeline.evaluate import evaluate as run_evaluation

    if json_file is not None and str(json_file) != "-" and json_file.exists():
        raise OutputExists(f"{json_file} exists: choose another name, or delete it")
    result = run_evaluation(
        model, data, split=split, cache=cache_file, device=device, workers=workers,
        split_file=split_file, allow_duplicates=allow_duplicates,
    )  # fmt: skip
    as_json = json.dumps(result.to_dict(), indent=1)
    if json_file is None or str(json_file) != "-":
        click.echo(result.to_table())
    else:
        click.echo(as_json)
    if json_file is not None and str(json_file) != "-":
        from cache.durable import write_atomic

        write_atomic(json_file, as_json.encode())


@cli.command()
@click.argument("run_folder", metavar="RUN", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="The TorchScript file to write.")
@click.option("--budget-mb", type=float, default=25.0, show_default=True, help="Largest file, 1e6 bytes.")
def export(run_folder: Path, out: Path, budget_mb: float) -> None:
    """Write the best student of RUN as one TorchScript file that loads with nothing but torch."""
    from pipeline.export import export as run_export

    result = run_export(run_folder, out, budget_mb=budget_mb)
    click.echo(
        f"{out}: {result.n_bytes / 1e6:.2f} MB, loads again and agrees with the checkpoint "
        f"(largest logit difference {result.worst_difference:.1g})"
    )


@cli.command()
@click.argument("model", type=FILE)
@click.argument("images", metavar="IMAGE...", type=FILE, nargs=-1, required=True)
@click.option("--device", type=DEVICES, default="auto", show_default=True)
def predict(model: Path, images: tuple[Path, ...], device: str) -> None:
    """Class probabilities of image files, as CSV, by a run folder or an exported file."""
    import csv

    from pipeline.predict import predict as run_prediction

    writer = csv.writer(sys.stdout, lineterminator="\n")
    predictions = run_prediction(model, images, device=device)
    writer.writerow(["image", "label", *predictions[0].probabilities])
    for found in predictions:
        writer.writerow([found.path, found.label, *(f"{p:.4f}" for p in found.probabilities.values())])


@cli.command()
@click.option("-o", "--out", type=FILE, default=Path("demo-run"), show_default=True, help="Folder to write.")
@click.option("--smoke", is_flag=True, help="Smaller and shorter (under 90 s): does it run here at all?")
def demo(out: Path, smoke: bool) -> None:
    """See the whole pipeline on a made-up skin-lesion data set: no data, account or download needed."""
    from pipeline.demo.run import run_demo

    run_demo(out, smoke=smoke, say=click.echo)
