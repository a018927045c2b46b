"""No line of this repository may load what could run: pickles, code from a hub, YAML that makes objects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("cache", "data", "pipeline", "benchmarks", "tests")
FROM_HUBS = {"from_pretrained", "from_config"}
SAFE_YAML = {"SafeLoader", "CSafeLoader", "BaseLoader", "CBaseLoader"}
# Its user names this file to be run; see docs/students.md.
RUNS_CODE = {"pipeline/students/from_file.py": {"exec", "compile"}}


def unsafe(source: str, path: str = "") -> Iterator[str]:
    """What a file does that it should not, with the line."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name, options = ast.unparse(call.func), {word.arg: word.value for word in call.keywords}
        last, said = name.rpartition(".")[2], f"{path}:{call.lineno}: {name}"
        if name == "torch.load" and ast.unparse(options.get("weights_only", ast.Constant(None))) != "True":
            yield f"{said} without weights_only=True"
        if "trust_remote_code" in options and ast.unparse(options["trust_remote_code"]) != "False":
            yield f"{said} with trust_remote_code"
        if last in FROM_HUBS and name.startswith("Auto") and "trust_remote_code" not in options and "tests" not in path:
            yield f"{said} does not say trust_remote_code=False"
        if name in ("yaml.load", "yaml.load_all"):
            loader = options.get("Loader", call.args[1] if len(call.args) > 1 else ast.Constant(None))
            if ast.unparse(loader).rpartition(".")[2] not in SAFE_YAML:
                yield f"{said} without a safe loader"
        if name.startswith("yaml.") and last in ("unsafe_load", "full_load", "unsafe_load_all", "full_load_all"):
            yield said
        if last in ("load", "read_array") and ast.unparse(options.get("allow_pickle", ast.Constant(False))) != "False":
            yield f"{said} with allow_pickle"
        if name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.hub.load") and "tests" not in path:
            yield said
        if name in ("eval", "exec", "compile") and name not in RUNS_CODE.get(path, ()):
            yield said


def test_nothing_here_loads_what_could_run() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 250
    found = [what for path in files for what in unsafe(path.read_text("utf-8"), path.relative_to(ROOT).as_posix())]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=safe)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)", "f(trust_remote_code=maybe)",
        "AutoModel.from_pretrained(x)", "yaml.load(text)", "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text, yaml.FullLoader)", "yaml.unsafe_load(text)", "np.load(path, allow_pickle=True)",
        "pickle.load(file)", "pickle.loads(content)", "eval(text)", "exec(text)", "torch.hub.load(a, b)",
    ],
)  # fmt: skip
def test_this_line_would_be_found(line: str) -> None:
    assert len(list(unsafe(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, map_location='cpu', weights_only=True)", "yaml.safe_load(text)", "model.eval()",
        "yaml.load(text, Loader=yaml.BaseLoader)", "AutoModel.from_pretrained(x, trust_remote_code=False)",
        "np.load(path)", "json.load(file)", "re.compile('a')", "model.save_pretrained(x)",
    ],
)  # fmt: skip
def test_this_line_is_fine(line: str) -> None:
    assert list(unsafe(line)) == []
