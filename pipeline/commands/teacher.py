"""The commands around teachers, before stage one. Each parses, calls one function, prints its result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pipeline.commands.shared import FILE, data_options, device_options, goes_on_with, same_command

if TYPE_CHECKING:
    from data.options import ScanOptions


@click.group()
def teacher() -> None:
    """Make a teacher that knows your images, before stage one."""


@teacher.command("fit")
@click.argument("data", type=FILE)
@click.option(
    "--from", "source", metavar="MODEL", required=True,
    help="Folder or Hugging Face name of the dual encoder to start from.",
)  # fmt: skip
@click.option("-o", "--out", type=FILE, required=True, help="The teacher folder to write.")
@click.option("--epochs", type=int, default=10, show_default=True)
@click.option("--lr", "lr_peak", type=float, default=1e-5, show_default=True, help="Learning rate after warm-up.")
@click.option("--weight-decay", type=float, default=0.05, show_default=True)
@click.option("--batch-size", type=int, default=32, show_default=True)
@click.option(
    "--last-layers", type=int, metavar="N", help="Only the last N image blocks learn, and what is above [all]."
)
@click.option("--freeze-text/--train-text", default=True, show_default=True, help="Whether the text tower stays.")
@click.option("--gradient-checkpointing", is_flag=True, help="Less memory, about a third more time.")
@click.option(
    "--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto", show_default=True,
    help="auto = bf16 on a GPU that has it, else fp16 there; fp32 on a CPU.",
)  # fmt: skip
@click.option("--prompts", type=FILE, help="YAML: class -> prompt or list of prompts [the class names].")
@click.option("--template", "templates", multiple=True, metavar="TEXT", help="A sentence around each prompt, with {}.")
@click.option("--val-fraction", type=float, default=0.15, show_default=True, help="Used where DATA has no val split.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on with an interrupted fit.")
@device_options
@data_options
@click.pass_context
def teacher_fit(
    context: click.Context, data: Path, source: str, out: Path, prompts: Path | None, templates: tuple[str, ...],
    resume: bool, device: str, workers: int | None, scan: ScanOptions, **settings: Any,
) -> None:  # fmt: skip
    """Fine-tune a dual encoder (SigLIP, CLIP) on the train split of DATA, against the texts of its classes.

    Validates on the val split, or on a part of train; never on test. The best epoch becomes a folder for
    `cache build --teacher`, which also says which images it was fitted on.
    """
    with goes_on_with(lambda: same_command("--resume") if (out / "last.pt").exists() else same_command()):
        from pipeline.fit.teacher import FitConfig, fit_teacher, saved_config
        from pipeline.teachers.prompts import PromptSource

        if resume:
            named = [name for name in settings if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
            config = dataclasses.replace(saved_config(out), **{name: settings[name] for name in named})
        else:
            config = FitConfig(**settings)
        texts = PromptSource(file=prompts, templates=templates)
        result = fit_teacher(
            data, source, out, config, prompts=texts, resume=resume, device=device, workers=workers, scan=scan
        )
    click.echo(
        f"{out}: best epoch {result.best_epoch}, val macro F1 {result.best_macro_f1:.3f} "
        f"(before {result.start_macro_f1:.3f}), {result.wall_s:.0f} s"
    )
