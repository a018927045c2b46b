"""The commands around teacher caches (stage one). Each parses, calls one function, prints its result."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.shared import (
    FILE,
    data_options,
    device_options,
    goes_on_with,
    same_command,
    user_folder,
)
from pipeline.commands.torchrun import joined, place, refuse_under_torchrun
from pipeline.start import without_garbage_collection

if TYPE_CHECKING:
    from cache.store import Store
    from data.options import ScanOptions
    from pipeline.build import BuildResult
    from pipeline.slices import Slice


def _slice(context: click.Context, parameter: click.Parameter, value: str | None) -> Slice | None:
    if value is None:
        return None
    from pipeline.errors import SettingError
    from pipeline.slices import Slice

    try:
        return Slice.parse(value)
    except SettingError as error:
        raise click.BadParameter(str(error)) from error


@click.group()
@click.pass_context
def cache(context: click.Context) -> None:
    """Build, look at, mend and share teacher caches (stage one)."""
    refuse_under_torchrun(context, ("build",))


@cache.command("build")
@click.argument("data", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="The cache to write, resume or extend.")
@click.option(
    "--teacher", default="google/medsiglip-448", show_default=True,
    help="A SigLIP, CLIP or image classifier (folder or Hugging Face name), torchvision:NAME[:WEIGHTS], "
    "timm:NAME[:FILE], a TorchScript file, or a finished run.",
)  # fmt: skip
@click.option("--teacher-config", type=FILE, help="YAML for one that does not say it: classes, size_px, mean, std.")
@click.option("--views", type=click.IntRange(1, 65_535), default=8, show_default=True, help="Views of a train image.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the views.")
@click.option("--prompts", type=FILE, help="YAML: class -> prompt or list of prompts [the class names].")
@click.option(
    "--template", "templates", multiple=True, metavar="TEXT",
    help="A sentence around each prompt, such as 'a dermatoscopic image of {}'; may be repeated.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto", show_default=True,
    help="auto = fp16 on a GPU, fp32 on a CPU.",
)  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), help="Views in a forward pass [64 on a GPU, else 16].")
@click.option(
    "--reuse", type=FILE, multiple=True,
    help="A cache of the same recipe whose rows are taken instead of computed; may be repeated.",
)  # fmt: skip
@click.option(
    "--slice", "part", metavar="I/N", callback=_slice,
    help="For an array of N jobs: compute every N-th image, into a file beside --out (t.03-of-16.h5).",
)  # fmt: skip
@click.option(
    "--store", "url", metavar="URL",
    help="First pull the rows that a store has, at the end put there what it lacked: a folder, s3://BUCKET/PATH, ...",
)  # fmt: skip
@click.option("--publish/--no-publish", default=True, show_default=True, help="With --store: put what it lacked there.")
@click.option("--yes", is_flag=True, help="Say yes to sending to this store, which is otherwise asked for once.")
@click.option("--dry-run", is_flag=True, help="Say what it would cost, and write nothing.")
@click.option(
    "--embedding/--no-embedding", default=True, show_default=True,
    help="Store image embeddings, from which the teacher's head can be made anew.",
)  # fmt: skip
@click.option("--names/--no-names", default=True, show_default=True, help="Store the images' relative paths.")
@device_options
@data_options
def cache_build(
    data: Path, out: Path, scan: ScanOptions, reuse: tuple[Path, ...], part: Slice | None, url: str | None,
    publish: bool, yes: bool, dry_run: bool, **settings: Any,
) -> None:  # fmt: skip
    """Run the teacher once over every view of DATA and write its logits and embeddings.

    Train images get all views, images of other splits the clean one. Repeating the command resumes an interrupted
    build, and adds images or views that are new.
    """
    if url is None and (yes or not publish):
        raise click.UsageError("--yes and --no-publish go with --store URL")
    if dry_run and not place().is_first:
        return
    store = _store(url if place().is_first else None, asking=publish and not dry_run, yes=yes)
    if dry_run:
        from pipeline.dry_run import plan_build
        from pipeline.recipe import BuildConfig

        asking = dataclasses.replace(scan, remember_split=False)
        with _or_pull(store):
            plan = plan_build(data, out, BuildConfig(**settings), asking, reuse=reuse, part=part, store=store)
        click.echo(_no_images(data, part) if plan is None else "\n".join(plan.lines()))
        return
    with goes_on_with(same_command), _or_pull(store):
        with without_garbage_collection():
            from pipeline.build import BuildConfig, build_cache

        with joined() as ranks:
            result = build_cache(
                data, out, BuildConfig(**settings), scan=scan, reuse=reuse, part=part, store=store, publish=publish,
                known_teachers=user_folder() / "teachers", ranks=ranks,
            )  # fmt: skip
    if not result.n_rows:
        click.echo(_no_images(data, part))
        return
    click.echo(
        f"{out if part is None else result.path}: {_what_was_built(result, store)}{_then(part, data, scan, out)}"
    )
    if store is not None and result.pushed is not None and result.pushed.is_new:
        click.echo(f"{store.address.shown}: {result.pushed.entry.n_rows:,} views put there")


def _what_was_built(result: BuildResult, store: Store | None) -> str:
    speed = f", {result.n_computed / result.wall_s:.1f} views/s" if result.n_computed else ""
    taken = "".join(f", {one.n_rows:,} taken from {one.path}" for one in result.reused)
    # In an earlier attempt, too, rows may have come from the store: nobody counted which.
    n_before = result.n_rows - result.n_computed - result.n_pulled - sum(one.n_rows for one in result.reused)
    if store is not None:
        taken += f", {result.n_pulled:,}{' taken now' if n_before else ''} from {store.address.shown}"
    taken += f", {n_before:,} stood before" if n_before else ""
    return (
        f"{result.n_rows:,} views of {result.n_samples:,} images "
        f"({result.n_computed:,} computed now in {result.wall_s:.0f} s{speed}{taken})"
        + (f", {result.n_skipped:,} images left out" if result.n_skipped else "")
        + (f", {result.n_recomputed:,} rows overflowed and were computed in fp32" if result.n_recomputed else "")
    )


@contextlib.contextmanager
def _or_pull(store: Store | None) -> Iterator[None]:
    """Who has no teacher may still have what it said, of teammates."""
    from pipeline.errors import TeacherNotFound

    try:
        yield
    except TeacherNotFound as error:
        if store is None:
            raise
        shown = store.address.shown
        pull = shlex.join(["softlabel", "cache", "pull", f"{shown}/ID", "-o", "OUT.h5"])
        raise TeacherNotFound(
            f"{error}\nTo take a cache that a teammate built, without the teacher:\n"
            f"  {shlex.join(['softlabel', 'cache', 'list', shown])}\n  {pull}"
        ) from error


def _store(url: str | None, *, asking: bool, yes: bool) -> Store | None:
    """The store of --store, with the consent to send to it if anything may go there."""
    if url is None:
        return None
    from cache.store import Store
    from pipeline.commands.store import ask_once

    store = Store(url)
    if asking:
        ask_once(
            store, yes, "what goes out: keys, drawn numbers, logits, embeddings, prompts and class names, no names of "
            "files (docs/share.md); repeat the command with --yes, or with --no-publish to pull alone",
        )  # fmt: skip
    return store


def _no_images(data: Path, part: Slice | None) -> str:
    return f"slice {part} of {data} has no images to compute: nothing was written"


def _then(part: Slice | None, data: Path, scan: ScanOptions, out: Path) -> str:
    """What is done with the files of all slices."""
    if part is None:
        return ""
    files, words = part.every_file(out), shlex.join([str(data), *scan.words()])
    merge = f"softlabel cache merge {files} -o {shlex.quote(str(out))}"
    stand = f"when all {part.count} stand" if part.count > 1 else "next"
    return f"; {stand}: `{merge}`, or at once `softlabel train {words} {files} -o RUN`"


@cache.command("info")
@click.argument("file", type=FILE)
@click.option("--data", type=FILE, help="Images with labels: also say what the teacher's answers to them are worth.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Of --data [val, else test, else train].")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@data_options
def cache_info(file: Path, data: Path | None, split: str | None, as_json: bool, scan: ScanOptions) -> None:
    """What a cache holds and which teacher it is from; with --data, whether that teacher is worth learning from."""
    if data is None and (split is not None or scan.words()):
        raise click.UsageError("--split and the options of images go with --data DATA")
    from pipeline.info import describe_cache, describe_cache_as_text

    reports = {}
    if data is not None:
        from pipeline.gate.report import reports_on

        reports = reports_on(file, data, split, dataclasses.replace(scan, remember_split=False))
    described = (
        json.dumps(describe_cache(file, reports), indent=1) if as_json else describe_cache_as_text(file, reports)
    )
    click.echo(described)


@cache.command("verify")
@click.argument("file", type=FILE)
@click.argument("data", type=FILE, required=False)
@click.option("--teacher", help="With DATA: compute some rows again with this teacher.")
@click.option("--sample", "n_rows", type=click.IntRange(1), default=32, show_default=True, help="How many rows.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Which rows.")
@device_options
@data_options
def cache_verify(
    file: Path, data: Path | None, teacher: str | None, n_rows: int, seed: int, device: str, workers: int | None,
    scan: ScanOptions,
) -> None:  # fmt: skip
    """Check every byte of a cache; with DATA and --teacher, also whether the teacher still says the same.

    Exit code 1 when one bit is off, with the blocks that are damaged, or when an answer is further off than the
    precision explains.
    """
    if (data is None) != (teacher is None):
        raise click.UsageError("--teacher and DATA go together: softlabel cache verify FILE DATA --teacher T")
    from cache import CacheReader

    with CacheReader(file, memory_map=False) as reader:
        reader.verify()
        click.echo(f"{file}: all {reader.n_rows:,} views of {reader.n_samples:,} images are as they were sealed")
    if data is not None and teacher is not None:
        from pipeline.recompute import recompute_rows

        found = recompute_rows(file, data, teacher, n_rows=n_rows, seed=seed, device=device, workers=workers, scan=scan)
        click.echo(
            f"{found.n_rows:,} rows computed again in {found.precision} on {found.device}: largest difference of a "
            f"logit {found.worst_logit:.2g}, tolerance {found.tolerance:g}"
        )
        found.check()


@cache.command("repair")
@click.argument("file", type=FILE)
@click.argument("data", type=FILE)
@click.option(
    "--teacher", default="google/medsiglip-448", show_default=True,
    help="The one that the cache was built with: a folder, file or name.",
)  # fmt: skip
@device_options
@data_options
def cache_repair(file: Path, data: Path, teacher: str, device: str, workers: int | None, scan: ScanOptions) -> None:
    """Compute the damaged blocks of a cache again, and no other row; the rest of the file stays as it is.

    FILE is replaced once the repaired one is sealed and verified. What cannot be repaired (its index, its checksums)
    is said.
    """
    with goes_on_with(same_command):
        from pipeline.mending import repair_cache

        found = repair_cache(file, data, teacher, device=device, workers=workers, scan=scan)
    click.echo(found.line())


@cache.command("merge")
@click.argument("sources", metavar="CACHE...", type=FILE, nargs=-1, required=True)
@click.option("-o", "--out", type=FILE, required=True, help="The cache to write; must not exist.")
def cache_merge(sources: tuple[Path, ...], out: Path) -> None:
    """Write the union of caches of one recipe: built by teammates, on several machines, or in an interrupted build.

    A folder stands for the caches in it, such as the `.parts` of a build. Rows in several caches must agree within
    the precision's tolerance; the first one is taken.
    """
    with goes_on_with(same_command):
        from cache import merge
        from pipeline.outputs import check_output_file
        from pipeline.slices import tell_of_missing_slices

        check_output_file(out)
        tell_of_missing_slices(sources)
        reader = merge(sources, out)
    click.echo(f"{out}: {reader.n_rows:,} views of {reader.n_samples:,} images")
