"""The commands of the course server. Each parses, calls one function, prints its result.

The token is in no option: it would stand in the history of the shell and in the list of processes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands.shared import FILE

if TYPE_CHECKING:
    from pipeline.course.server import CourseServer
    from pipeline.course.token import Token

log = logging.getLogger("pipeline.course")

_SERVER = click.option(
    "--server", metavar="URL", required=True, envvar="SOFTLABEL_COURSE_SERVER", show_envvar=True,
    help="Its address, such as http://HOST:PORT.",
)  # fmt: skip
_TOKEN_FILE = click.option(
    "--token-file", type=FILE, metavar="FILE", help="Holds the token [$SOFTLABEL_COURSE_TOKEN, or asked for]."
)
_TIMEOUT = click.option(
    "--timeout", "timeout_s", type=float, default=30.0, show_default=True, metavar="SECONDS",
    help="For an answer; an upload has longer.",
)  # fmt: skip
_JSON = click.option("--json", "as_json", is_flag=True, help="The same as JSON.")


@click.group()
def course() -> None:
    """Hand a student in at a course server; scores."""


@course.command("submit")
@click.argument("file", type=FILE)
@_SERVER
@_TOKEN_FILE
@click.option("--budget-mb", type=float, default=25.0, show_default=True, help="FILE is smaller, in 1e6 bytes.")
@click.option("--n-classes", type=click.IntRange(2), default=10, show_default=True, help="Logits an image.")
@click.option("--expected-score", type=float, metavar="S", help="Ask only if the standing attempt is better than S.")
@click.option("--dry-run", is_flag=True, help="Check FILE, show the status, send nothing.")
@click.option("--yes", is_flag=True, help="Send in spite of warnings.")
@_TIMEOUT
def course_submit(
    file: Path, server: str, token_file: Path | None, budget_mb: float, n_classes: int, expected_score: float | None,
    dry_run: bool, yes: bool, timeout_s: float,
) -> None:  # fmt: skip
    """Check FILE by the course's contract, then send it, once.

    Only the latest submission counts and one is taken in 15 minutes: what speaks against sending is said before, and
    asked about on a terminal.
    """
    from platformdirs import user_state_path

    from pipeline.course.check import check_file
    from pipeline.course.history import History
    from pipeline.course.submission import SubmitConfig, status_command, submit

    config = SubmitConfig(expected_score=expected_score, dry_run=dry_run, yes=yes)
    client = _client(server, timeout_s)
    token = _token(token_file)
    checked = check_file(file, n_classes=n_classes, budget_mb=budget_mb)
    log.info("%s", checked.to_text())
    _say_who_reads(client)
    history = History(user_state_path("softlabel", appauthor=False) / "course", client.address.url)
    confirm = (lambda: click.confirm("Send it all the same?", err=True)) if _is_terminal() else None
    accepted = submit(client, token, checked, history, config, confirm)
    if accepted is None:
        click.echo(f"{file}: would be sent to {client.address.url}; nothing was sent")
        return
    number = "" if accepted.attempt is None else f" as attempt {accepted.attempt}"
    click.echo(f'{file}: accepted{number} ("{accepted.message}"); its score: `{status_command(client, token)}`')


@course.command("status")
@_SERVER
@_TOKEN_FILE
@_TIMEOUT
@_JSON
def course_status(server: str, token_file: Path | None, timeout_s: float, as_json: bool) -> None:
    """Your attempts and their scores; the latest one counts."""
    import dataclasses

    from pipeline.course.submission import attempts_text

    client = _client(server, timeout_s)
    token = _token(token_file)
    _say_who_reads(client)
    attempts = client.attempts(token)
    found = json.dumps([dataclasses.asdict(one) for one in attempts], indent=1)
    click.echo(found if as_json else attempts_text(attempts))


@course.command("leaderboard")
@_SERVER
@_TIMEOUT
@_JSON
def course_leaderboard(server: str, timeout_s: float, as_json: bool) -> None:
    """The table of all teams. Needs no token."""
    found = _client(server, timeout_s).leaderboard()
    click.echo(json.dumps(found.to_dicts(), indent=1) if as_json else found.to_text())


def _client(server: str, timeout_s: float) -> CourseServer:
    from pipeline.course.address import parse_address
    from pipeline.course.exchange import Limits
    from pipeline.course.server import CourseServer

    return CourseServer(parse_address(server), Limits(timeout_s=timeout_s))


def _token(file: Path | None) -> Token:
    from pipeline.course.token import VARIABLE, find_token

    return find_token(file, os.environ.get(VARIABLE), _asked if _is_terminal() else None)


def _say_who_reads(client: CourseServer) -> None:
    """A line where the token is about to travel in the clear."""
    from pipeline.course.address import notice_of

    if notice := notice_of(client.address):
        log.warning("%s", notice)


def _asked() -> str:
    return click.prompt("Token of the course server (not shown)", hide_input=True, err=True)


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()
