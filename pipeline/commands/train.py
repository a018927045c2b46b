"""The command of stage two: parse the settings of a run (file, then flags), train, print the result.

Importing this loads neither torch, numpy nor h5py.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pipeline.commands.shared import (
    FILE,
    data_options,
    device_options,
    goes_on_with,
    same_command,
    user_folder,
)
from pipeline.start import without_garbage_collection

if TYPE_CHECKING:
    from data.options import ScanOptions
    from pipeline.training.config import TrainConfig


def _setting(flag: str, name: str, kind: Any, default: Any, text: str) -> Any:
    """One flag of one field of TrainConfig, with that field's default (a test compares them)."""
    return click.option(flag, name, type=kind, default=default, show_default=True, help=text)


def _settings(command: Any) -> Any:
    """Every field of TrainConfig as a flag, in the order of --help."""
    number, whole, words = float, int, click.Choice
    for option in reversed([
        _setting("--student", "student", str, "shufflenet_v2_x1_0", "torchvision or timm name, or my_model.py:build."),
        _setting("--student-size", "student_size_px", whole, 224, "Side of the student's images, pixels."),
        _setting("--init", "init", str, "none", "First weights: imagenet, a run folder, a file of weights, or none."),
        _setting("--dropout", "dropout", number, None, "Probability before the last linear layer [the model's own]."),
        _setting("--epochs", "epochs", whole, 40, "Passes over the train images."),
        _setting("--early-stopping", "early_stopping", whole, 0, "Epochs without a better macro F1; 0 = never stop."),
        _setting("--best-by", "best_by", str, "mean", "Task that chooses the best epoch; mean = of all tasks."),
        _setting("--views", "n_views", whole, 0, "Use the first so many cached views only; 0 = all."),
        click.option("--fresh-views/--cached-views", "fresh_views", default=False,
                     help="With --no-teacher: views drawn anew every epoch."),
        _setting("--label-fraction", "label_fraction", number, 1.0, "Share of the labels to use, drawn by class."),
        _setting("--batch-size", "batch_size", whole, 0, "Images in a step; 0 = by the length of the run: 32 to 128."),
        _setting("--sampler", "sampler", words(["shuffle", "balanced"]), "shuffle",
                 "balanced draws each class equally often."),
        click.option("--teacher/--no-teacher", default=True, help="Without: hard labels only, on the same views."),
        _setting("--target", "target", words(["view", "mean"]), "view",
                 "The teacher's answer to the view, or the mean of its logits over the image's views."),
        _setting("--soft-loss", "soft_loss", words(["kl", "cross-entropy"]), "kl",
                 "Form of the soft loss; the gradient is the same."),
        _setting("--temperature", "temperature", number, 4.0, "T of the soft loss."),
        _setting("--temperature-end", "temperature_end", number, 0.0, "T at the last step; 0 = constant."),
        _setting("--alpha", "alpha", number, 0.3, "Weight of the hard loss; the soft loss has the rest."),
        _setting("--class-weights", "class_weights", str, "none", "none, auto, or a YAML file, class: weight."),
        _setting("--label-smoothing", "label_smoothing", number, 0.0, "Share of a hard label spread over all."),
        _setting("--logit-adjustment", "logit_adjustment", number, 0.0,
                 "tau of the logit-adjusted hard loss, usually 1; 0 = off."),
        _setting("--optimizer", "optimizer", words(["adamw", "sgd"]), "adamw", "sgd has Nesterov momentum."),
        _setting("--lr", "lr_peak", number, 1e-3, "Learning rate after warm-up; then a cosine to 0."),
        _setting("--warmup-fraction", "warmup_fraction", number, 0.05, "Share of the steps that warm up."),
        _setting("--momentum", "momentum", number, 0.9, "Of sgd."),
        _setting("--weight-decay", "weight_decay", number, 0.05, "Not of biases and norms."),
        _setting("--clip-norm", "clip_norm", number, 0.0, "Largest gradient norm; 0 = no clipping."),
        _setting("--ema-decay", "ema_decay", number, 0.999, "Of the average of weights that is kept; 0 = none."),
        _setting("--precision", "precision", words(["auto", "fp32", "bf16", "fp16"]), "auto",
                 "auto = fp32, on CUDA bf16 or fp16."),
        _setting("--budget-mb", "budget_mb", number, 25.0, "Largest exported file, 1e6 bytes."),
        _setting("--val-fraction", "val_fraction", number, 0.15, "Used where DATA has no val split."),
        _setting("--seed", "seed", click.IntRange(0), 0, "Of weights, order, views, and what validates of train."),
    ]):  # fmt: skip
        command = option(command)
    return command


@click.command()
@click.argument("data", type=FILE)
@click.argument("cache_files", metavar="CACHE...", type=FILE, nargs=-1, required=True)
@click.option("-o", "--out", type=FILE, help="The run folder to write.")
@_settings
@click.option(
    "--seeds", "n_seeds", type=click.IntRange(1, 1000), help="Train so many seeds, from --seed on, in RUN/seed-*."
)
@click.option(
    "--at-once", type=click.IntRange(1, 1000),
    help="Of --seeds: so many at the same time, in processes of their own [on a CPU one a core, else 1].",
)  # fmt: skip
@click.option("--config", "config_file", type=FILE, help="YAML file of settings, or config.json of a run; flags win.")
@click.option("--write-config", type=FILE, help="Write all settings to this YAML file, and train nothing.")
@click.option("--anyway", is_flag=True, help="Train on a teacher that is near chance or has its classes mixed up.")
@click.option("--report/--no-report", default=True, help="Write RUN/report.html at the end.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Of the student on a CPU [the fastest, timed at start].")
@click.option(
    "--tuning/--no-tuning", "tuned", default=True, help="Without: torch's own threads, layout and optimizer loop."
)
@click.option(
    "--pixels",
    type=click.Choice(["auto", "jpeg", "decoded", "views"]),
    default="auto",
    show_default=True,
    help="Keep rendered views or decoded images on disk; no result depends on it.",
)
@click.option("--pixels-gb", type=click.FloatRange(0), default=8.0, show_default=True, help="The most disk for them.")
@click.option("--pixels-dir", type=FILE, help="Where they are kept [CACHE.pixels].")
@device_options
@data_options
@click.pass_context
def train(
    context: click.Context, data: Path, cache_files: tuple[Path, ...], out: Path | None, n_seeds: int | None,
    at_once: int | None, config_file: Path | None, write_config: Path | None, anyway: bool, report: bool, resume: bool,
    device: str, workers: int | None, threads: int | None, tuned: bool, scan: ScanOptions,
    pixels: str, pixels_gb: float, pixels_dir: Path | None, **flags: Any,
) -> None:  # fmt: skip
    """Train a student on the cached views and logits of DATA. No teacher is loaded.

    Several caches of one recipe are taken as one: those of teammates, or of an array of jobs.
    Validates on the val split, or on a part of train; never on test.
    """
    given = {n: v for n, v in flags.items() if context.get_parameter_source(n) is ParameterSource.COMMANDLINE}
    if write_config is not None:
        from pipeline.training.config_file import write_config as write_settings

        write_settings(write_config, _resolve(given, config_file, None))
        click.echo(f"{write_config}: {len(flags)} settings; train with them by --config {write_config}")
        return
    if out is None:
        raise click.UsageError("Missing option '-o' / '--out'.")
    if at_once is not None and n_seeds is None:
        raise click.UsageError("--at-once goes with --seeds")
    with goes_on_with(lambda: same_command("--resume") if _first_run(out) else same_command()):
        with without_garbage_collection():
            from pipeline.process import resolve_device
            from pipeline.train import train_into
            from pipeline.training.pixels import PixelOptions
            from pipeline.training.process_settings import ProcessOptions
            from pipeline.training.seeds import share_cores, train_seeds

        config = _resolve(given, config_file, _first_run(out) or out if resume else None)
        where = PixelOptions(choice=pixels, limit_gb=pixels_gb, folder=pixels_dir, fallback=user_folder() / "pixels")

        run = functools.partial(
            train_into, data=data, cache=cache_files, anyway=anyway, device=device, workers=workers, report=report,
            process=ProcessOptions(tuned=tuned, threads=threads), scan=scan, pixels=where,
        )  # fmt: skip
        if n_seeds is not None:
            at_once, threads = share_cores(n_seeds, resolve_device(device), at_once=at_once, threads=threads)
            found = train_seeds(out, config, n_seeds, run, resume=resume, at_once=at_once, threads=threads)
            mean, spread = found.mean_and_spread("val_macro_f1")
            click.echo(f"{out}: {len(found.rows)} seeds, val macro F1 {mean:.3f} +- {spread:.3f}")
            return
        result = run(out, config, resume)
    by = f" of {config.best_by}" if config.best_by != "mean" else ""
    click.echo(
        f"{out}: best epoch {result.best_epoch}, val macro F1{by} {result.best_macro_f1:.3f}, {result.wall_s:.0f} s"
    )


def _first_run(out: Path) -> Path | None:
    """The run whose settings --resume goes on with: `out`, or one of its seeds; imports nothing, also after Ctrl-C."""
    return next((path for path in (out, *sorted(out.glob("seed-*"))) if (path / "last.pt").exists()), None)


def _resolve(given: dict[str, Any], config_file: Path | None, resumed: Path | None) -> TrainConfig:
    """Defaults, or the settings of the run to go on with; then the file's; then the flags that were given."""
    import dataclasses

    from pipeline.train import saved_config
    from pipeline.training.config import TrainConfig
    from pipeline.training.config_file import read_config

    settings = {**(read_config(config_file) if config_file else {}), **given}
    return dataclasses.replace(saved_config(resumed) if resumed else TrainConfig(), **settings)
