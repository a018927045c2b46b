"""A course server on loopback, files to hand in, and a token that must be seen nowhere."""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.card import StudentCard
from pipeline.course import check
from pipeline.errors import CourseError
from pipeline.formats import torchscript

from .loopback import CourseService

Cli = Callable[..., tuple[int, str, str]]
WriteFile = Callable[..., Path]

SECRET = 's3cret/töken&x "%'
"""Needs escapes in URLs, in JSON and in HTML."""
TELLTALES = ("s3cret", "ken&x", "ken%26x", "ken&amp;x")
"""No escape changes all of these."""
CARD = StudentCard(
    student="tiny", tasks={"class": tuple(sorted(f"{number}. class" for number in range(1, 11)))}, size_px=224,
    geometry="warp", cache_id="ab" * 32, taught=True, teacher="a SigLIP",
)  # fmt: skip


def tiny_student(n_classes: int = 10) -> nn.Module:
    """Float32 [B, 3, S, S] -> [B, C] by a few weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(147, n_classes)).eval()


@pytest.fixture(scope="session")
def write_file(tmp_path_factory: pytest.TempPathFactory) -> WriteFile:
    """`write_file(module, card)`: its TorchScript file, with a card or without."""

    def write_file(module: nn.Module, card: StudentCard | None = None, name: str = "student_model.pt") -> Path:
        path = tmp_path_factory.mktemp("handed in") / name
        extra = None if card is None else {torchscript.CARD_NAME: card.to_json()}
        path.write_bytes(torchscript.program(module, extra))
        return path

    return write_file


@pytest.fixture(scope="session")
def student_file(write_file: WriteFile) -> Path:
    """A file by the contract."""
    return write_file(tiny_student(), CARD)


@pytest.fixture(scope="session")
def really_checked() -> Callable[..., check.CheckedFile]:
    """The real check, once for each file and setting: it starts a process that loads torch, which takes seconds."""
    return functools.cache(check.check_file)


@pytest.fixture
def checked_once(monkeypatch: pytest.MonkeyPatch, really_checked: Callable[..., check.CheckedFile]) -> None:
    """Let the command line share those."""
    monkeypatch.setattr(check, "check_file", really_checked)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[CourseService]:
    """A server whose address and token the environment has; no proxy is in the way."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with CourseService() as service:
        monkeypatch.setenv("SOFTLABEL_COURSE_SERVER", service.url)
        monkeypatch.setenv("SOFTLABEL_COURSE_TOKEN", SECRET)
        yield service


@pytest.fixture
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this machine remembers what it handed in."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "softlabel" / "course"


class _Everything(logging.Handler):
    """All records of all loggers, formatted, with their tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def seen() -> list[str]:
    """Everything that was shown, logged or raised."""
    return []


@pytest.fixture
def cli(cli: Cli, seen: list[str]) -> Cli:
    """The command line, what it prints being kept."""

    def run_words(*words: object) -> tuple[int, str, str]:
        code, out, err = cli(*words)
        seen.extend((out, err))
        assert "Traceback" not in err
        return code, out, err

    return run_words


@pytest.fixture(autouse=True)
def _the_token_is_seen_nowhere(
    seen: list[str], state_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """In no output, log record of any library and level, error with all it was raised for, or file."""
    everything, root, errors = _Everything(), logging.getLogger(), []
    level, kept = root.level, CourseError.__init__

    def note(self: CourseError, *words: object) -> None:
        kept(self, *words)
        errors.append(self)

    monkeypatch.setattr(CourseError, "__init__", note)
    root.addHandler(everything)
    root.setLevel(logging.DEBUG)
    yield
    root.removeHandler(everything)
    root.setLevel(level)
    texts = [*seen, *everything.lines, *map(_with_causes, errors)]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "token"]
    texts += [path.read_bytes().decode("utf-8", "replace") for path in files]
    for text in texts:
        assert not any(tale in text.lower() for tale in TELLTALES), text


def _with_causes(error: BaseException | None) -> str:
    """Every traceback on the way, also those that Python would not show."""
    texts = []
    while error is not None:
        texts.append("".join(traceback.format_exception(type(error), error, error.__traceback__)))
        error = error.__context__
    return "\n".join(texts)
