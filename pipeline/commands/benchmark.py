"""The command that measures what a student costs. It parses, calls one function, prints its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands.shared import FILE


def _numbers(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...]:
    """`1,2` as (1, 2)."""
    try:
        return tuple(int(word) for word in value.split(",")) if value is not None else ()
    except ValueError:
        raise click.BadParameter(f"expected numbers with commas between them, got '{value}'", context, option) from None


@click.command()
@click.argument("model", type=FILE)
@click.option("--batch-size", type=int, default=32, show_default=True, help="Images in a pass, for the throughput.")
@click.option("--threads", metavar="N,...", callback=_numbers, help="A row for each number [the cores there are].")
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Of timing single images; again, batches.")
@click.option("--size", "size_px", type=int, metavar="PX", help="Input size [what the file says of itself].")
@click.option("--teacher", metavar="T", help="A teacher to time beside it, as `cache build` would run it.")
@click.option("--latency-ms", type=float, help="A budget: exit code 1 where the median of one image is over it.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, allow_dash=True), help="Write JSON (- = print).")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda", "mps"]), default="cpu", show_default=True, help="Where it is run."
)
def benchmark(model: Path, json_file: Path | None, **settings: Any) -> None:
    """Measure what MODEL costs: latency, throughput, memory, bytes.

    MODEL is an exported file or a run folder, which is exported to a temporary TorchScript file first. It is run in
    a process of its own that loads the runtime and the file alone. Nothing is read or decoded: images are noise.
    """
    from pipeline.benchmark import BenchmarkConfig
    from pipeline.benchmark import benchmark as run_benchmark
    from pipeline.errors import OutputExists, OverBudget
    from pipeline.metrics.files import json_bytes
    from pipeline.outputs import check_output_file

    is_printed = str(json_file) == "-"
    if json_file is not None and not is_printed:
        check_output_file(json_file)
        if json_file.exists():
            raise OutputExists(f"{json_file} exists: choose another name, or delete it")
    found = run_benchmark(model, BenchmarkConfig(**settings))
    click.echo(json_bytes(found.to_dict()).decode() if is_printed else found.to_table(), nl=not is_printed)
    if json_file is not None and not is_printed:
        from cache.durable import write_atomic

        write_atomic(json_file, json_bytes(found.to_dict()))
    if not found.is_within_budget:
        raise OverBudget(found.verdict)
    if found.verdict and not is_printed:
        click.echo(found.verdict)
