"""Reads what is left of damaged lines of JSON: joined by a network drive, cut off by a kill, overwritten by zeros."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

_DECODER = json.JSONDecoder()


def find_objects(line: bytes, keys: tuple[str, ...]) -> list[tuple[slice, dict[str, Any]]]:
    """Return the JSON objects with these keys in a line, and where each is; a sound line has just one."""
    text = line.decode("latin-1")  # one character for each byte; the journals themselves are ASCII
    found: list[tuple[slice, dict[str, Any]]] = []
    at = text.find("{")
    while at >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            if all(key in value for key in keys):
                found.append((slice(at, end), value))
        at = text.find("{", end)
    return found


def blank_rest(line: bytes, kept: list[slice]) -> bytes:
    """Return the line with spaces for everything but the kept parts, so that all of it has the same position."""
    blank = bytearray(b" " * len(line))
    for part in kept:
        blank[part] = line[part]
    return bytes(blank)


def keep_copy(path: Path) -> Path:
    """Copy a damaged file to `<name>.damaged`, or the next free name after it, and return the copy."""
    copy, number = path.with_name(f"{path.name}.damaged"), 1
    while copy.exists():
        number += 1
        copy = path.with_name(f"{path.name}.damaged-{number}")
    shutil.copyfile(path, copy)
    return copy


def describe_damage(path: Path, lines: dict[int, int], copy: Path) -> str:
    """Return a sentence on damaged lines; `lines` maps the number of each to the number of entries read from it."""
    shown = ", ".join(f"line {number} ({count or 'no'} entries of it could be read)" for number, count in lines.items())
    return f"{path} was damaged: {shown}; the rest is used, and the file as it was is kept as {copy}"
