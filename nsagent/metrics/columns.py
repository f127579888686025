"""The lines of what comes in thousands, kept from one scrape to the next: a column a family, a cell a cgroup or namespace.

Of a hundred cgroups some ten do something between two scrapes. Only their changed parts are formatted again, a column without
a changed cell keeps its bytes, and whoever still sends them shares them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Any, Final, Generic, TypeVar

from nsagent.metrics.family import NS_PER_S, Family, Number
from nsagent.metrics.text import label_text, number, seconds
from nsagent.usage import Usage

K = TypeVar("K", bound=Hashable)
Getter = Callable[[Any], Number]

_NO_CELL: Final = b""


class Column:
    """One family's lines."""

    def __init__(self, family: Family, missing: frozenset[str]) -> None:
        """`missing` names the fields of Usage that are left out."""
        self.family = family
        self.samples = 0
        self.text = b""
        self.changed = False
        self.cells: list[bytes] = []
        self._text: Callable[[Any], str] = seconds if family.scale == NS_PER_S else number
        self._getters: list[tuple[str, Getter]] = []
        for values, getter in family.parts:
            if isinstance(getter, str) and getter in missing:
                continue
            labels = label_text(family.labels, values)
            read: Getter = itemgetter(Usage._fields.index(getter)) if isinstance(getter, str) else getter
            self._getters.append((f",{labels}}} " if labels else "} ", read))

    def fill(self, rows: Sequence[int], prefixes: Sequence[str], things: Sequence[Any]) -> None:
        """Format the cells of `rows`; a thing of None has no lines."""
        cells, each = self.cells, self.family.each
        if each is not None:
            for row, thing in zip(rows, things, strict=True):
                cells[row] = self._lines(prefixes[row], each(thing)) if thing is not None else _NO_CELL
        elif len(self._getters) == 1:
            name, scale = self.family.name, self.family.scale
            ((tail, read),) = self._getters
            for row, thing in zip(rows, things, strict=True):
                value = None if thing is None else read(thing)
                if value is None:
                    cells[row] = _NO_CELL
                elif scale == NS_PER_S:
                    cells[row] = f"{name}{prefixes[row]}{tail}{value // NS_PER_S}.{value % NS_PER_S:09d}\n".encode()
                else:
                    cells[row] = f"{name}{prefixes[row]}{tail}{value if value.__class__ is int else number(value)}\n".encode()
        else:
            for row, thing in zip(rows, things, strict=True):
                cells[row] = self._parts(prefixes[row], thing) if thing is not None else _NO_CELL
        self.changed = True

    def _lines(self, prefix: str, found: Iterable[tuple[tuple[str, ...], Number]]) -> bytes:
        name, labels, text = self.family.name, self.family.labels, self._text
        lines = [f"{name}{prefix},{label_text(labels, v)}}} {text(value)}\n" for v, value in found if value is not None]
        return "".join(lines).encode()

    def _parts(self, prefix: str, thing: Any) -> bytes:
        name, text = self.family.name, self._text
        found = [(tail, read(thing)) for tail, read in self._getters]
        return "".join([f"{name}{prefix}{tail}{text(value)}\n" for tail, value in found if value is not None]).encode()

    def reorder(self, rows: Sequence[int]) -> None:
        """Make the cells those of `rows` as they were, in that order; -1 is an empty one."""
        self.cells.append(_NO_CELL)
        self.cells = list(map(self.cells.__getitem__, rows))
        self.changed = True

    def join(self) -> None:
        """Bring `text` and `samples` up to date."""
        if self.changed:
            self.text = b"".join(self.cells)
            self.samples = self.text.count(b"\n")  # in a label a newline is escaped
            self.changed = False


class Table(Generic[K]):
    """The columns of all families of one scope: a row for each cgroup, or namespace."""

    def __init__(
        self, families: Iterable[Family], parts: Sequence[str], prefix: Callable[[K], str], missing: frozenset[str]
    ) -> None:
        """`parts` names the fields of a thing that are compared one by one; without any, a thing is compared as a whole."""
        columns = [Column(family, missing) for family in families]
        self.columns = {column.family.name: column for column in columns}
        self._parts = [[column for column in columns if column.family.part == part] for part in parts or ("",)]
        self._whole = not parts
        self._prefix = prefix
        self._keys: list[K] = []
        self._prefixes: list[str] = []
        self._things: list[Any] = []

    def update(self, things: Mapping[K, Any]) -> None:
        """Take over what there is now, in its order."""
        keys, values = list(things), list(things.values())
        if keys != self._keys:
            self._reorder(keys)
        old, self._things = self._things, values
        rows = [row for row, (new, was) in enumerate(zip(values, old, strict=True)) if new is not was]
        if self._whole:
            rows = [row for row in rows if values[row] != old[row]]
            self._fill(self._parts[0], rows, [values[row] for row in rows])
            return
        for index, columns in enumerate(self._parts):
            if columns:
                found = [row for row in rows if old[row] is None or values[row][index] is not old[row][index]]
                self._fill(columns, found, [values[row][index] for row in found])

    def _fill(self, columns: Iterable[Column], rows: Sequence[int], things: Sequence[Any]) -> None:
        if rows:
            for column in columns:
                column.fill(rows, self._prefixes, things)

    def _reorder(self, keys: list[K]) -> None:
        was = dict(zip(self._keys, range(len(self._keys)), strict=True))
        rows = list(map(was.get, keys, repeat(-1)))
        prefixes, things = self._prefixes, self._things
        self._prefixes = [prefixes[row] if row >= 0 else self._prefix(key) for row, key in zip(rows, keys, strict=True)]
        self._things = [things[row] if row >= 0 else None for row in rows]
        self._keys = keys
        for column in self.columns.values():
            column.reorder(rows)
