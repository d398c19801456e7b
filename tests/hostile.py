"""Hostile content of files: bytes changed at random, trees with odd values, other things in a file's place."""

import os
import re
import shutil
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 0.5, -0.0, 2**31, 2**63, -(2**63), 10**20, 10**400, 1e308, -1e308, 5e-324,
    float("nan"), float("inf"), "", "0", "nan", "x", "x" * 5000, "../../../etc/passwd", "/dev/zero", "[/old]", "%s",
    "\x1b[2J\x1b]52;c;eA==\x07", "[link=http://x]y", "${oc.env:HOME}", "${", "<script>alert(1)</script>", "=1+1",
    "a\nb", "$(touch x)", "; touch x", "`", "```", "\0", "\ud800", "é" * 300, "$5_$10", "{}", [], {}, [[]], [1, "a"],
    [None], {"a": {"b": 1}}, {"": 0}, nested(50), [0] * 1000, "completed", "failed", "interrupted", "none", "auto",
    "~", "image_folder", "!!python/object:os.system",
)  # fmt: skip
USED = (  # keys of summary.json, config.yaml and checkpoints that decide what a program does
    "status", "varied", "overrides", "choices", "images", "epochs", "wandb_id", "run_id", "name", "objective", "seed",
    "best/val/accuracy", "test/accuracy", "study", "model", "data", "trainer", "kernel_size", "classes", "std", "rows",
)  # fmt: skip
WORDS = (
    b"", b"\0" * 64, b"\xff" * 64, b"\xff\xfe", b"[" * 100_000, b"{" * 100_000, b'{"a":' * 50_000, b"- " * 50_000,
    b"9" * 5000, b"9" * 400, b".nan", b"NaN", b"1e999", b"&a [*a]", b"*a", b"!!set {1}", b"${oc.env:HOME}",
    b"!!python/object/apply:os.system ['x']", b"\n", b"\r\n", b",", b'"', b"'", b": ", b"#", b"../../x", b"-1", b"0",
    b"null", b"true", b"[]", b"{}", b"2020-13-45", b"\x1b[2J",
)  # fmt: skip


def change_bytes(chance: Random, content: bytes) -> bytes:
    """Cut, flip, overwrite, insert or repeat a part of the bytes, or replace a number by a word."""
    at, length = chance.randrange(len(content) + 1), chance.choice((1, 2, 8, 64, 1024))
    match chance.randrange(8):
        case 0:
            return content[:at]
        case 1:
            return content[at:]
        case 2:
            flipped = bytearray(content)
            for _ in range(chance.choice((1, 4, 40)) if content else 0):
                flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            return bytes(flipped)
        case 3:
            return content[:at] + chance.randbytes(length) + content[at + length :]
        case 4:
            return content[:at] + chance.choice(WORDS) + content[at:]
        case 5:
            return content[:at] + content[at : at + length] * chance.choice((2, 3, 50)) + content[at + length :]
        case 6:
            return chance.choice(WORDS)
    numbers = [*re.finditer(rb"-?\d[\d.e+-]*", content)]
    if not numbers or len(content) > 1 << 20:
        return content[: at // 2]
    number = chance.choice(numbers)
    return content[: number.start()] + chance.choice(WORDS) + content[number.end() :]


def change_tree(chance: Random, tree: Any, values: tuple[Any, ...] = VALUES) -> Any:
    """Copy a tree with a few values, keys or sections changed, removed or added."""
    changed = deepcopy(tree)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place: Any = changed
        key: Any = None
        while isinstance(place, (dict, list)) and place:
            used = [key for key in USED if isinstance(place, dict) and key in place]
            keys = (
                used if used and chance.random() < 0.6 else [*place] if isinstance(place, dict) else range(len(place))
            )
            key = chance.choice(keys)
            if not isinstance(place[key], (dict, list)) or not place[key] or chance.random() < 0.3:
                break
            place = place[key]
        if key is None or not isinstance(place, (dict, list)) or not place:
            return chance.choice(values)
        match chance.randrange(5):
            case 0:
                del place[key]
            case 1 if isinstance(place, dict):
                place[chance.choice(("", "x", "a.b", "status", "../x", "+x", 5, None))] = place[key]
            case _:
                place[key] = deepcopy(chance.choice(values))
    return changed


def change_file(chance: Random, path: Path) -> None:
    """Replace a file by nothing, a folder, a pipe, a device, a loop or another file."""
    kind = chance.randrange(7)
    others = [other for other in path.parent.iterdir() if other.is_file() and other != path]
    if kind == 6 and others:
        shutil.copy(chance.choice(others), path)
        return
    path.unlink()
    match kind:
        case 1:
            path.mkdir()
        case 2:
            os.mkfifo(path)
        case 3:
            path.symlink_to("/dev/zero")
        case 4:
            path.symlink_to(path.name)
        case 5:
            path.symlink_to("/nowhere/at/all")
