"""The commands that share caches through a store. Each parses, calls one function, prints its result."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands.shared import FILE, goes_on_with

if TYPE_CHECKING:
    from cache.store import Patience, Pushed, Store, StoreAddress

_MOST_BELOW = 10
_TIMEOUT = click.option(
    "--timeout", "timeout_s", type=float, default=30.0, show_default=True, metavar="SECONDS",
    help="To wait for the store without a byte; tried again some times.",
)  # fmt: skip


@click.command("push")
@click.argument("file", type=FILE)
@click.argument("url")
@click.option("--with-names", is_flag=True, help="Send the names of the images' files, too.")
@click.option("--check", is_flag=True, help="Read back what stands there already, and put it right if it is damaged.")
@click.option("--yes", is_flag=True, help="Say yes to this URL, which is otherwise asked for once.")
@_TIMEOUT
def cache_push(file: Path, url: str, with_names: bool, check: bool, yes: bool, timeout_s: float) -> None:
    """Share the cache FILE in a store: a folder, s3://BUCKET/PATH, ssh://, gs://, hf:// (docs/share.md).

    Every byte of FILE is checked first. What goes out is a copy without names of files, command, user and host; it is
    printed before. Keys allow to test whether an image is in it, and embeddings are patient data: docs/share.md.
    Repeating the command goes on after a break, and uploads nothing where the same rows stand there already.
    """
    from cache.store import Store, StoreAddress

    address = StoreAddress.parse(url)
    with _goes_on(address):
        store = Store(address, patience=_patience(timeout_s))
        n_bytes = file.stat().st_size if file.is_file() else 0
        with _bar(n_bytes) as progress:
            confirm = _asking(store, yes)
            pushed = store.push(file, with_names=with_names, check=check, confirm=confirm, progress=progress)
    click.echo(_came_to(pushed, address.shown, with_names=with_names, check=check))
    shown_id = shlex.quote(f"{address.shown}/{pushed.entry.content_id[:16]}")
    click.echo(f"to have them: softlabel cache pull {shown_id} -o t.h5")


def _came_to(pushed: Pushed, place: str, *, with_names: bool, check: bool) -> str:
    """One line about a push."""
    from cache.store import Stood
    from cache.store.listing import megabytes

    entry = pushed.entry
    what = f"{entry.n_rows:,} views of {entry.n_samples:,} images, {megabytes(entry.n_bytes)}"
    if pushed.is_new:
        put_back = {
            Stood.MISSING: "; its data were missing there, and are put back",
            Stood.DAMAGED: "; what stood there was not what its manifest says, and is put right",
        }
        return f"{place}: {what}{put_back.get(pushed.stood, '')}"
    nameless = ", without names of files; they stay as they are" if with_names and not entry.has_names else ""
    whole = ", and they are what their manifest says" if check else ""
    return f"{place} has these rows already, since {entry.pushed[:10]}{nameless}{whole}: nothing was uploaded ({what})"


@click.command("pull")
@click.argument("url", metavar="URL/ID")
@click.option("-o", "--out", type=FILE, required=True, help="The cache to write; must not exist.")
@_TIMEOUT
def cache_pull(url: str, out: Path, timeout_s: float) -> None:
    """Bring a cache from a store to OUT; ID is the beginning of one of its ids, as `softlabel cache list` shows it.

    Its bytes are compared with their sha256 before anything opens them; then a child process with limits looks at
    all of them. Repeating the command goes on after a break.
    """
    from cache.store import Store
    from cache.store.address import split_id
    from cache.store.listing import megabytes
    from pipeline.outputs import check_output_file

    address, wanted = split_id(url)
    with _goes_on(address):
        store = Store(address, patience=_patience(timeout_s))
        entry = store.find(wanted)
        if not out.exists():
            check_output_file(out)
        with _bar(entry.n_bytes) as progress:
            store.pull(entry, out, progress=progress)
    click.echo(f"{out}: {entry.n_rows:,} views of {entry.n_samples:,} images, {megabytes(entry.n_bytes)}")


@click.command("list")
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="All that the manifests say, as JSON.")
@_TIMEOUT
def cache_list(url: str, as_json: bool, timeout_s: float) -> None:
    """What a store has, recipe by recipe: teacher, kind, classes, counts, size, date, ID. Reads the manifests alone."""
    from cache.errors import printable
    from cache.store import Store, StoreAddress
    from cache.store.listing import to_text

    address = StoreAddress.parse(url)
    store = Store(address, patience=_patience(timeout_s))
    entries = store.entries()
    if as_json:
        click.echo(json.dumps([entry.to_dict() for entry in entries], indent=1))
    elif entries:
        click.echo(to_text(entries))
    elif below := store.stores_below():
        lines = [f"  softlabel cache list {shlex.quote(printable(one))}" for one in below[:_MOST_BELOW]]
        click.echo("\n".join([f"{printable(address.shown)} is no store, but above {len(below):,}:", *lines]))
    else:
        click.echo(f"{address.shown} is empty; softlabel cache push t.h5 {shlex.quote(address.shown)} fills it")


def _patience(timeout_s: float) -> Patience:
    from cache.store import Patience

    return Patience.of(timeout_s)


def _asking(store: Store, yes: bool) -> Callable[[list[str]], None]:
    """Prints what goes out and, once for each remote place, asks whether it may."""

    def confirm(lines: list[str]) -> None:
        from cache.errors import printable

        click.echo("\n".join(map(printable, lines)))
        if not store.is_there:
            click.echo(f"new folder {printable(store.address.url)}")
        ask_once(store, yes, "read what goes out (above), then repeat the command with --yes")

    return confirm


def ask_once(store: Store, yes: bool, remedy: str) -> None:
    """Ask whether caches may go to a remote place, unless that was answered before; SettingError without a yes.

    StoreError for a folder that takes none.
    """
    from platformdirs import user_state_path

    from cache.errors import printable
    from pipeline.consent import Consent
    from pipeline.errors import SettingError

    store.refuse_read_only()
    if not store.address.is_remote:
        return
    place = store.place
    consent = Consent(user_state_path("softlabel", appauthor=False) / "stores.json")
    if consent.is_given(place):
        return
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise SettingError(
                f"nothing was sent: {place} needs a yes once, and there is no terminal to ask at; {remedy}"
            )
        if not click.confirm(f"Send it to {printable(place)}?", err=True):
            raise SettingError("nothing was sent")
    consent.remember(place)


@contextlib.contextmanager
def _goes_on(address: StoreAddress) -> Iterator[None]:
    """Ctrl-C and a full disk end the command with the line that goes on, without a password."""
    with goes_on_with(lambda: shlex.join(["softlabel", *(address.redact(word) for word in sys.argv[1:])])):
        yield


@contextlib.contextmanager
def _bar(n_bytes: int) -> Iterator[Callable[[int], None]]:
    from tqdm import tqdm

    with tqdm(total=n_bytes, unit="B", unit_scale=True, disable=None, leave=False) as bar:

        def progress(n_more: int) -> None:
            bar.update(n_more)

        yield progress
