"""The lines of what comes in thousands, kept from one scrape to the next: a column a family, cut into batches of rows.

Of a hundred cgroups some ten do something between two scrapes. Where the numbers of a batch in a column are those of last time,
its lines are. Nothing but lines is kept: each is in memory once, whoever is being sent it.

A batch is written at once: its lines are a template that % fills in, because bytes % ints is several times faster than to put
lines together one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from operator import attrgetter
from typing import Any, Final, Generic, Protocol, TypeVar

from nsagent.metrics.family import NS_PER_S, Family, Number, Values
from nsagent.metrics.text import label_text, number

K = TypeVar("K", bound=Hashable)

_ROWS: Final = 32  # of a batch, on average: a small one seldom has a change, a large one costs less beside its text

_ROW: Final = b"\x01"  # stands in a template for a row's labels; no control character is in a label, they are escaped


class Column(Protocol):
    """Writes the lines of a family."""

    def write(self, rows: Sequence[bytes], things: Sequence[Any], old: Sequence[Any] | None) -> bytes | None:
        """Return the lines of things; `rows` are the labels of each. None: the numbers are those of the things `old`."""
        ...


class Fields:
    """A family of one or some fields of a thing."""

    def __init__(self, family: Family, fields: Mapping[tuple[str, ...], str]) -> None:
        self._read = attrgetter(*fields.values())
        self._one = len(fields) == 1
        self._limit = family.limit
        self._spell = _seconds if family.scale == NS_PER_S else _plain
        self._name = family.name.encode()
        self._tails = [_tail(family, values) for values in fields]

    def write(self, rows: Sequence[bytes], things: Sequence[Any], old: Sequence[Any] | None) -> bytes | None:
        """Implement Column."""
        numbers: list[Any] = list(map(self._read, things))
        if old is not None and numbers == list(map(self._read, old)):
            return None
        if not self._one:
            numbers = [value for each in numbers for value in each]
        if self._limit:
            numbers = [None if value == math.inf else value for value in numbers]
        conversion, written = self._spell([value for value in numbers if value is not None])
        name, ends = self._name, [tail + conversion for tail in self._tails]
        if None in numbers or not self._one:
            cells = zip(product(rows, ends), numbers, strict=True)
            return b"".join([name + row + end for (row, end), value in cells if value is not None]) % written
        return (name + (ends[0] + name).join(rows) + ends[0]) % written if rows else b""


class Split:
    """A family of mappings: each row has lines of its own."""

    def __init__(self, family: Family, read: Callable[[Any], Mapping[Values, Number]]) -> None:
        self._read = read
        self._spell = _seconds if family.scale == NS_PER_S else _plain
        self._lines = _Lines(family)

    def write(self, rows: Sequence[bytes], things: Sequence[Any], old: Sequence[Any] | None) -> bytes | None:
        """Implement Column."""
        found = list(map(self._read, things))
        if old is not None and found == list(map(self._read, old)):
            return None
        conversion, written = self._spell([value for each in found for value in each.values()])
        lines = [self._lines[conversion, tuple(each)].replace(_ROW, row) for each, row in zip(found, rows, strict=True)]
        return b"".join(lines) % written


class _Lines(dict[tuple[bytes, tuple[Values, ...]], bytes]):
    """Templates of the lines of a row, by how numbers are written, and what values of the family's labels the row has."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self._family = family

    def __missing__(self, key: tuple[bytes, tuple[Values, ...]]) -> bytes:
        name, (conversion, found) = self._family.name.encode(), key
        self[key] = template = b"".join([name + _ROW + _tail(self._family, values) + conversion for values in found])
        return template


def _tail(family: Family, values: Values) -> bytes:
    labels = label_text(family.labels, (values,) if isinstance(values, str) else values)
    return literal(f",{labels}}} " if labels else "} ")


def literal(text: str) -> bytes:
    """Return text as it stands in a template."""
    return text.replace("%", "%%").encode()


def _plain(numbers: Sequence[Any]) -> tuple[bytes, tuple[Any, ...]]:
    """Return how numbers stand at the end of a line of a template, and what % is given for them."""
    if {int, bool}.issuperset(map(type, numbers)):
        return b"%d\n", tuple(numbers)
    return b"%b\n", tuple([number(value).encode() for value in numbers])


def _seconds(numbers: Sequence[Any]) -> tuple[bytes, tuple[Any, ...]]:
    return b"%d.%09d\n", tuple([part for ns in numbers for part in divmod(ns, NS_PER_S)])


def column_of(family: Family, missing: frozenset[str]) -> Column | None:
    """Return what writes a family, of which the fields in `missing` are left out; None if nothing is left."""
    if family.by is not None:
        return Split(family, family.by)
    fields = {values: field for values, field in family.parts if isinstance(field, str) and field not in missing}
    return Fields(family, fields) if fields else None


class _Batch:
    """Rows that follow each other: their labels, their things as of the last sample, and their lines in each column."""

    __slots__ = ("rows", "samples", "texts", "things")

    def __init__(self, rows: list[bytes], columns: int) -> None:
        self.rows = rows
        self.things: Sequence[Any] | None = None
        self.texts = [b""] * columns
        self.samples = 0

    def update(self, things: Sequence[Any], parts: Sequence[list[tuple[int, Column]]], *, split: bool) -> None:
        """Take over what there is now. `parts` has the columns, by the part of a thing they read if things are `split`."""
        old, self.things = self.things, things
        if things == old:
            return
        now = list(zip(*things, strict=True)) if split else [things]
        before = [None] * len(now) if old is None else list(zip(*old, strict=True)) if split else [old]
        for columns, new, was in zip(parts, now, before, strict=True):
            if new != was:
                self._write(columns, new, was)

    def series(self, places: Mapping[str, int]) -> list[int]:
        """Return how many lines each row has, given the column of each family, where lines stand in the order of rows."""
        starts, found = [row.replace(b"%%", b"%") for row in self.rows], [0] * len(self.rows)
        for name, at in places.items():
            row = 0
            for line in self.texts[at].split(b"\n")[:-1]:
                while not line.startswith(starts[row], len(name)):
                    row += 1
                found[row] += 1
        return found

    def _write(self, columns: list[tuple[int, Column]], things: Sequence[Any], old: Sequence[Any] | None) -> None:
        rows: Sequence[bytes] = self.rows
        if None in things or (old is not None and None in old):
            rows = [row for row, thing in zip(rows, things, strict=True) if thing is not None]
            things, old = [thing for thing in things if thing is not None], None
        for at, column in columns:
            text = column.write(rows, things, old)
            if text is not None:
                self.samples += text.count(b"\n") - self.texts[at].count(b"\n")  # in a label a newline is escaped
                self.texts[at] = text


class Table(Generic[K]):
    """The columns of all families of one scope: a row for each cgroup, or namespace."""

    def __init__(
        self, families: Sequence[Family], parts: Sequence[str], labels: Callable[[K], str], missing: frozenset[str]
    ) -> None:
        """`parts` names the fields of a thing, each read by its own families; without any, all read the thing as a whole."""
        columns = {family: column for family in families if (column := column_of(family, missing)) is not None}
        self._places = {family.name: at for at, family in enumerate(columns)}
        readers = [(family.part, (at, column)) for at, (family, column) in enumerate(columns.items())]
        self._parts = [[column for part, column in readers if part == name] for name in parts or ("",)]
        self._split = bool(parts)
        self._labels = labels
        self._keys: list[K] = []
        self._batches: dict[tuple[K, ...], _Batch] = {}

    @property
    def samples(self) -> int:
        """The number of lines."""
        return sum([batch.samples for batch in self._batches.values()])

    def pieces(self, name: str) -> list[bytes]:
        """Return the lines of a family, a piece a batch."""
        at = self._places.get(name)
        return [] if at is None else [batch.texts[at] for batch in self._batches.values()]

    def series(self) -> Iterator[tuple[K, int]]:
        """Yield how many lines each row has."""
        for keys, batch in self._batches.items():
            yield from zip(keys, batch.series(self._places), strict=True)

    def update(self, things: Mapping[K, Any]) -> None:
        """Take over what there is now, in its order."""
        keys, values = list(things), list(things.values())
        if keys != self._keys:
            self._keys, old = keys, self._batches
            self._batches = {rows: old.get(rows) or self._batch(rows) for rows in _cut(keys)}
            del old  # the lines of what is gone, before others are written
        start = 0
        for rows, batch in self._batches.items():
            batch.update(values[start : start + len(rows)], self._parts, split=self._split)
            start += len(rows)

    def _batch(self, rows: Iterable[K]) -> _Batch:
        return _Batch([literal("{" + self._labels(key)) for key in rows], len(self._places))


def _cut(keys: Iterable[K]) -> Iterator[tuple[K, ...]]:
    """Cut the rows into batches, where a key's hash says so: what comes or goes changes the batch it is in, and no other."""
    rows: list[K] = []
    for key in keys:
        rows.append(key)
        if hash(key) % _ROWS == 0:
            yield tuple(rows)
            rows = []
    if rows:
        yield tuple(rows)
