"""A file of torch.export without what would run while torch reads it: pickles, libraries, formulas that are code.

torch.export.load unpickles whatever a file asks for, and evaluates its formulas as Python. This lets through what our
own exports have and nothing else, so that reading a card, and a model of tensors and plain operations, runs no code of
a stranger's. Run: softlabel predict FILE.pt2 IMAGE
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import RunError

TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Of the environment: with it, torch.load takes tensors and plain values alone, whatever its caller asks for."""
DAMAGED = (OSError, ValueError, LookupError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What `plain_archive` lets through of archives that are not whole."""
_MEMBERS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|models/model\.json|data/sample_inputs/model\.pt|extra/softlabel\.json|archive_format|archive_version|version"
    r"|byteorder|\.data/(version|serialization_id)|serialized_(exported_program\.json|(state_dict|constants"
    r"|example_inputs)\.(pt|json))|extra_files/softlabel\.json"
)
_SYMBOL = re.compile(r"Symbol\('[a-z]+\d+'(, (positive|integer|nonnegative)=True)*\)")
_PLAIN_FORMULA = re.compile(r"([-+*/(), \d]|[A-Z][A-Za-z]*\()*")
"""Without symbols: numbers, and functions whose names begin with a capital, as no function of Python's own does."""
_MAX_MEMBERS, _MAX_BYTES = 100_000, 4 << 30


def plain_archive(path: Path) -> io.BytesIO:
    """The same archive, written anew from members that hold no code; RunError where there are others."""
    lean = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(lean, "w") as target:
        members = source.infolist()
        if len(members) > _MAX_MEMBERS or sum(member.file_size for member in members) > _MAX_BYTES:
            raise _refusal(path, "it has more members, or larger ones, than a student")
        names = [member.filename for member in members]
        if len(set(names)) < len(names):
            raise _refusal(path, "it has two members of one name")
        for member in members:
            content = source.read(member)
            if not _MEMBERS.fullmatch(member.filename.partition("/")[2]):
                raise _refusal(path, f"it holds {member.filename!r}")
            if member.filename.endswith(".json") and "extra" not in member.filename:
                _check_json(content, path)
            target.writestr(zipfile.ZipInfo(member.filename), content)
    lean.seek(0)
    return lean


@contextlib.contextmanager
def tensors_only() -> Iterator[None]:
    """Inside, torch.load takes tensors and plain values alone, also where its caller asks for more."""
    before = os.environ.get(TENSORS_ONLY)
    os.environ[TENSORS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[TENSORS_ONLY]
        else:
            os.environ[TENSORS_ONLY] = before


def _check_json(content: bytes, path: Path) -> None:
    waiting: list[Any] = [json.loads(content)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("use_pickle"):
                raise _refusal(path, "it has tensors as pickles")
            formula = value.get("expr_str")
            if isinstance(formula, str) and not _PLAIN_FORMULA.fullmatch(_SYMBOL.sub("1", formula)):
                raise _refusal(path, f"its formula {formula!r:.100} is code")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _refusal(path: Path, reason: str) -> RunError:
    return RunError(
        f"{path} was not written by `softlabel export`, and to read it could run a stranger's code: {reason}"
    )
