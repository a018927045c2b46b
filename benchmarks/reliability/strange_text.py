"""Names and manifests that somebody made on purpose: what JSON, a terminal or a file system may stumble over.

Run: benchmarks/hostile_files.py
"""

import json
import random
from typing import Any

NAMES = (
    b"/etc/passwd", b"../../x.jpg", b"a/../b.jpg", b"..", b"", b".", b"\\\\host\\share", b"C:\\x", b"\x1b]0;owned\x07",
    b"\x1b[2J", "a\u202egpj.exe".encode(), b"\xff\xfe", b"a\nError: b", b"n" * 5000, b"~/x", b"con", b"a//b", b"-rf",
    "\u200b".encode(), b"%s%n", b"{0.__class__}", b"<script>alert(1)</script>", b"$(reboot)",
)  # fmt: skip
TEXTS = (
    "\x1b[31mred", "a\nError: b", "\u202eabc", "<script>alert(1)</script>", "{0}", "%s", "x" * 100_000, "../../x", "",
    "\u0000", "\uffff", "\U0001f600", "NaN", "__class__", "constructor",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**53 - 1, 2**53, -(2**70), 1.5, -0.0, 1e308, [], {}, [[]], [None], {"a": {}}, *TEXTS,
)  # fmt: skip
_TOKENS = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0", b"1" * 5000, b"0." + b"1" * 60, b'"\\ud800"',
    b'"\\udc00\\ud800"', b"[" * 40 + b"]" * 40, b"[" * 100_000, b'"' + b"[" * 1000 + b'"', b'{"a":1,"a":2}', b"\xff",
    b"\xef\xbb\xbf",
    b'"\\u0000"', b"01", b"1.", b"'a'", b"/**/1", b"\x00", b'"' + b"\\" * 1001, b"[" + b"{}," * 5000 + b"{}]",
)  # fmt: skip


def manifest(rng: random.Random, raw: bytes) -> bytes:
    """Another manifest, made from a sound one."""
    if rng.random() < 0.4:
        at = rng.randrange(len(raw))
        stop = at + rng.choice((0, 1, 1, 4, 30))
        return raw[:at] + rng.choice((*_TOKENS, rng.randbytes(3))) + raw[stop:]
    value = json.loads(raw)
    for number in range(rng.choice((1, 1, 2, 5))):
        _change(rng, value, 1 if number else 300)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _change(rng: random.Random, value: dict[str, Any], times: int) -> None:
    """Put a strange value, or the same one twice, or a strange key, somewhere inside."""
    places = list(_places(value))
    holder, key = rng.choice(places)
    how = rng.random()
    if how < 0.7:
        holder[key] = rng.choice(_VALUES)
    elif how < 0.8:
        holder[key] = [holder[key]] * rng.choice((2, times))
    elif how < 0.9 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = rng.choice(_VALUES)
    else:
        del holder[key]


def _places(value: Any) -> Any:
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(item, (dict, list)):
            yield from _places(item)
