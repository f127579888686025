"""How names and numbers are written in an exposition."""

from __future__ import annotations

import functools
import math
import re
from typing import Final

from nsagent.metrics.family import NS_PER_S

# Invalid UTF-8 (as os.fsdecode leaves it) and control characters; and a backslash that could be taken for our own escape.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|\\(?=[0-7]{3})")
_SPECIAL: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_CACHE: Final = 1 << 16  # label texts kept: some 10 MB of them


def printable(name: str) -> str:
    r"""Make a name from the kernel printable: each byte that is not is written ``\ooo`` (octal), as in /proc/mounts.

    Two names never become one: a backslash that three octal digits follow is itself written ``\134``. systemd's
    ``\x2d`` stays as it is.
    """
    return _UNPRINTABLE.sub(lambda match: f"\\{ord(match[0]) & 0xFF:03o}", name)


def label(name: str, value: str) -> str:
    """Return ``name="value"``, escaped."""
    return f'{name}="{printable(value).translate(_SPECIAL)}"'


@functools.lru_cache(_CACHE)
def label_text(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """Return the labels as they are written, with commas between: the same few come again in each scrape."""
    return ",".join(map(label, names, values))


def seconds(ns: int) -> str:
    """Write ns as seconds, every digit kept: a float would lose them after 104 days."""
    return f"{ns // NS_PER_S}.{ns % NS_PER_S:09d}"


def number(value: int | float) -> str:
    """Write a number as Go's ParseFloat reads it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if isinstance(value, int) or (value.is_integer() and abs(value) < 1 << 53) else repr(value)
