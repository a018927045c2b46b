"""A student of the user's own: `my_model.py:build` -> the module that build(n_classes) returns.

Only a training runs the file; who loads a finished run takes its architecture from the checkpoint. Its folder is on
the path, for modules beside it, only while the file and its function run. Run: softlabel train ... --student FILE:NAME
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import SettingError, did_you_mean, first_line
from pipeline.students.names import StudentSource

_OURS = ("cache", "data", "pipeline")
_CLASS_COUNT = ("n_classes", "num_classes")


def build_from_file(source: StudentSource, n_classes: int, size_px: int, seed: int) -> tuple[nn.Module, str]:
    """(the module, sha256 of the file); its weights depend on the seed alone.

    SettingError says what is wrong with the file: where it is, what it has, what it raised and in which line.
    """
    assert source.path is not None
    path = source.path.absolute()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingError(
            f"no such file: {source.path} ({error.strerror}); --student takes FILE.py:FUNCTION"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    with _seeded(seed), _importable(path.parent):
        module = _execute(source, path, content, f"softlabel_student_{digest[:12]}")
        function = _function(module, source)
        arguments, named = _arguments(function, source, n_classes, size_px)
        with user_errors(source, f"{source.model}()"):
            model = function(*arguments, **named)
    if not isinstance(model, nn.Module):
        kind = f"{type(model).__name__}, not" if model is not None else "nothing: it should return"
        raise SettingError(f"{source.name} returns {kind} an nn.Module")
    return model, digest


def _execute(source: StudentSource, path: Path, content: bytes, name: str) -> ModuleType:
    """Import a file under a name that is nobody else's; it stays in `sys.modules`, where TorchScript looks it up."""
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    # Compiled here, not by an import: the digest is of these very bytes, and no old .pyc is taken.
    with user_errors(source, "the import of its file"):
        exec(compile(content, str(path), "exec", dont_inherit=True), module.__dict__)  # its annotations are no strings
    return module


def _function(module: ModuleType, source: StudentSource) -> Callable[..., Any]:
    function = getattr(module, source.model, None)
    if callable(function):
        return function
    own = [
        name for name, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__
    ]  # fmt: skip
    assert source.path is not None
    has = f"it has {', '.join(own)}" if own else "it has none"
    raise SettingError(f"{source.path.name} has no function '{source.model}'{did_you_mean(source.model, own)} ({has})")


def _arguments(
    function: Callable[..., Any], source: StudentSource, n_classes: int, size_px: int
) -> tuple[list[int], dict[str, int]]:
    """How the function wants to be told: the number of classes by its name or first, the size if it asks for it."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return [n_classes], {}
    named = {name: n_classes for name in _CLASS_COUNT if name in parameters}
    if "size_px" in parameters:
        named["size_px"] = size_px
    required = [
        name for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in named
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]  # fmt: skip
    if len(required) > 1 or (required and named.keys() & set(_CLASS_COUNT)):
        raise SettingError(
            f"{source.name} takes ({', '.join(parameters)}): expected {source.model}(n_classes), or with size_px"
        )
    if not required and not named.keys() & set(_CLASS_COUNT):
        raise SettingError(f"{source.name} takes no n_classes: expected {source.model}(n_classes), or with size_px")
    return [n_classes] * len(required), named


@contextlib.contextmanager
def user_errors(source: StudentSource, what: str) -> Iterator[None]:
    """Anything that the user's code raises inside becomes a SettingError with its kind, words, file and line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise SettingError(_told(source, what, error)) from error


def _told(source: StudentSource, what: str, error: BaseException) -> str:
    assert source.path is not None
    folder = source.path.absolute().parent
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(folder) and "site-packages" not in frame.filename
    ]  # fmt: skip
    line = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else source.path.name
    if isinstance(error, SyntaxError) and error.lineno is not None:
        line = f"{Path(error.filename or source.path).name}, line {error.lineno}"
    said = first_line(error) if isinstance(error, Exception) else "it ended the process"
    hidden = [name for name in _OURS if (folder / f"{name}.py").exists()]
    hint = "".join(f"; {name}.py beside it is hidden by a package of softlabel: rename it" for name in hidden)
    return f"{source.name} fails in {what}: {type(error).__name__}: {said} ({line}){hint}"


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, everything that people draw weights with starts from the seed; afterwards it goes on as it was."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules of this folder can be imported inside; afterwards neither they nor the folder are known to Python.

    Another file, of another folder, may have a `blocks.py` of its own beside it.
    """
    before, path = set(sys.modules), str(folder)
    sys.path.insert(0, path)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(path)
        new = set(sys.modules) - before
        beside = {name for name in new if "." not in name and _is_in(sys.modules[name], folder)}
        for name in new:
            if name.split(".")[0] in beside and not name.startswith("softlabel_student_"):
                del sys.modules[name]


def _is_in(module: ModuleType, folder: Path) -> bool:
    """Whether it is FOLDER/name.py or the package FOLDER/name, not deeper, such as in a virtual environment there."""
    file = getattr(module, "__file__", None)
    is_beside = file is not None and Path(file).parent == folder
    return is_beside or str(folder / module.__name__) in getattr(module, "__path__", ())
