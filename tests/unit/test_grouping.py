"""Rows of contexts added up by namespace and cgroup: the same sums as one by one, whatever the rows have in common."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

from nsagent.namespaces import KINDS, NamespaceId
from nsagent.usage import Grouping, Usage


def test_each_sum_is_that_of_its_rows() -> None:
    chance = random.Random(5)
    keys = [(chance.randrange(40), tuple(chance.choice((0, 7, 1 << 32 | 7, 9 + row)) for _ in KINDS)) for row in range(300)]
    grouping = Grouping(keys)
    for _ in range(2):  # it is used again while the keys stay
        rows = [Usage(*(chance.randrange(1 << 50) for _ in Usage._fields)) for _ in keys]
        expected: defaultdict[Any, list[int]] = defaultdict(lambda: [0] * len(Usage._fields))
        for (cgroup, packed), used in zip(keys, rows, strict=True):
            names = [
                NamespaceId(kind, word & 0xFFFFFFFF, word >> 32) if word else kind
                for kind, word in zip(KINDS, packed, strict=True)
            ]
            for name in (cgroup, *names):
                expected[name] = [a + b for a, b in zip(expected[name], used, strict=True)]
        namespaces, cgroups, ended = grouping.sums(rows)
        found: dict[Any, Usage] = {}
        for part in (namespaces, cgroups, ended):
            found.update(part)
        assert found == {name: Usage(*sums) for name, sums in expected.items()}
        assert NamespaceId(KINDS[0], 7, 1) in namespaces
        assert len(namespaces) + len(cgroups) + len(ended) == len(expected)


def test_a_kind_of_which_nothing_ended_has_used_nothing() -> None:
    namespaces, cgroups, ended = Grouping([]).sums([])
    assert (namespaces, cgroups) == ({}, {})
    assert ended == dict.fromkeys(KINDS, Usage())
