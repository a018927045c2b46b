"""The tables and the worked example of docs/format.md are those of the code and of the golden file."""

import ast
import hashlib
import json
import re
import sys
from pathlib import Path

from cache import CacheReader
from cache.layout import Dims, is_big
from cache.survey import TOLERANCE_LOGITS
from data.views import COLUMNS

HERE = Path(__file__).parent
GOLDEN = HERE / "golden_format_1.cache"
SECOND_READER = HERE / "second_reader.py"
PAGE = (HERE.parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
PAIR_TABLES = ("samples/key", "samples/first_row", "rows/view")


def section(title):
    """The text of the page between one heading and the next."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/format.md has no section {title!r}"
    return found.group(1)


def table_in(title):
    """The one table of a section: its rows below the head, each a list of cells."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    rows = [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert sum(set(row[0]) == {"-"} for row in rows) == 1, f"section {title!r} does not have one table"
    return rows[2:]


def first_code(cell):
    """The first text in backticks."""
    return re.findall(r"`([^`]+)`", cell)[0]


def pattern(text):
    """`logits/<i>` -> a regular expression, in which <object> may hold a slash and the others may not."""
    parts = re.split(r"(<[A-Za-z]+>)", text)
    kinds = {"<object>": r".+", "<name>": r"\w+", "<i>": r"\d+", "<W>": r"\d+"}
    return re.compile("".join(kinds.get(part, re.escape(part)) for part in parts))


def test_the_object_table_names_exactly_the_objects_that_are_written():
    sizes = {"n_samples": 3, "n_rows": 600, "n_params": 5, "class_counts": (2, 300), "features": {"embedding": (4, 8)}}
    specs = Dims(manifest_bytes=7, name_bytes=9, **sizes).specs()
    listed = {first_code(row[0]): row for row in table_in("Objects")}
    matches = {name: [text for text in listed if pattern(text).fullmatch(name)] for name in specs}
    assert {len(texts) for texts in matches.values()} == {1}, matches
    assert {texts[0] for texts in matches.values()} == set(listed)
    for name, spec in specs.items():
        _, _, hashed_as, shape, covered_by, _ = listed[matches[name][0]]
        assert any(pattern(text).fullmatch(spec.dtype.str) for text in re.findall(r"`([^`]+)`", hashed_as)), name
        lengths = {"N + 1": 4, "M": 7, "N": 3, "R": 600, "P": 5, "B": 2, "C": spec.shape[-1], "...": "4, 8"}
        for letter, length in lengths.items():
            shape = shape.replace(letter, str(length))
        assert str(spec.shape) in shape.split(" or "), name
        assert covered_by == ("CRC" if is_big(name) else "itself" if name == "seal" else "seal"), name


def test_the_objects_called_optional_are_those_that_may_be_absent():
    least = Dims(manifest_bytes=1, n_samples=1, n_rows=1, n_params=0, class_counts=(2,)).specs()
    always = {first_code(row[0]) for row in table_in("Objects") if not re.search("optional|absent", row[5])}
    for text in {first_code(row[0]) for row in table_in("Objects")}:
        assert any(pattern(text).fullmatch(name) for name in least) == (text in always), text


def test_the_page_names_the_fields_of_a_built_cache(tiny_cache):
    manifest = CacheReader(tiny_cache).manifest

    def fields(identity):
        for name, value in identity.items():
            nested = isinstance(value, dict) and name in ("teacher", "views", "preprocessing")
            yield from (f"{name}.{inner}" for inner in value) if nested else [name]

    assert {first_code(row[0]) for row in table_in("Identity")} == set(fields(manifest.identity))
    assert set(manifest.provenance) <= {first_code(row[0]) for row in table_in("Provenance")}
    assert tuple(first_code(row[0]) for row in table_in("Views")) == tuple(manifest.view_columns) == COLUMNS


def test_the_page_gives_the_tolerances_of_the_code():
    rows = table_in("Two answers to one question")
    assert {first_code(name): float(tolerance) for name, tolerance in rows} == TOLERANCE_LOGITS


def test_the_worked_example_is_the_golden_file(second):
    ours, theirs = CacheReader(GOLDEN), second.Cache(GOLDEN)
    objects = theirs.objects
    sealed = b"".join(second.part(n, a, not second.is_big(n)) for n, a in sorted(objects.items()) if n != "seal")
    identity = json.dumps(theirs.manifest["identity"], sort_keys=True, separators=(",", ":"))
    assert identity in objects["manifest"].tobytes().decode()
    answered = [second.part(name, objects[name]) for name in sorted(objects) if is_big(name) or name in PAIR_TABLES]
    asked = [objects[name].tobytes() for name in PAIR_TABLES]
    expected = {
        "bytes of the file": GOLDEN.stat().st_size,
        "samples": ours.n_samples,
        "rows": ours.n_rows,
        "bytes of `manifest`": len(ours.manifest.to_bytes()),
        "bytes of `identity` in it": len(identity),
        "`samples/first_row`": " ".join(map(str, ours.first_row.tolist())),
        "`rows/view`": " ".join(map(str, ours.view.tolist())),
        "bytes hashed for the seal": len(sealed),
        "the first 32 of them": sealed[:32].hex(),
        "`seal`": ours.seal.hex(),
        "`recipe_id`": ours.recipe_id,
        "bytes hashed for `cache_id`": len(b"softlabel cache_id 1\0") + 64 + len(b"".join(asked)),
        "`cache_id`": ours.cache_id,
        "bytes hashed for `content_id`": len(b"softlabel content_id 1\0") + len(b"".join(answered)),
        "`content_id`": ours.content_id,
        "key of a file that holds the 9 bytes `softlabel`": hashlib.blake2b(b"softlabel", digest_size=16).hexdigest(),
    }
    for name, array in objects.items():
        if name.startswith("crc32/"):
            expected[f"`{name}`"] = array.tobytes().hex()
        elif name not in ("seal", "manifest", "samples/first_row", "rows/view"):
            text = array[:1].tobytes().hex()
            expected[f"`{name}`, entry 0"] = text
    assert dict(table_in("Worked example")) == {what: f"`{value}`" for what, value in expected.items()}
    assert ours.manifest.to_bytes().decode() in section("Worked example")
    assert hashlib.sha256(sealed).hexdigest() == ours.seal.hex()


def test_the_second_reader_is_short_and_imports_nothing_of_ours():
    source = SECOND_READER.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 60
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").split(".")[0])
    assert "h5py" in imported
    assert imported - set(sys.stdlib_module_names) == {"h5py", "numpy"}
    assert not imported & {"importlib", "runpy", "subprocess"}
    assert "__import__" not in source
