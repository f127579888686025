"""What tests need to know of PromQL: the selectors and labels of an expression, and Grafana's variables in it.

Not a parser: a selector is a name with braces, or a word that begins as the names do that the agent or a scrape makes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import ROOT

_STRING = r'"(?:[^"\\]|\\.)*"'
_NAME = r"[a-zA-Z_:][\w:]*(?=\s*\{)|\b(?:nsagent|process|scrape)_\w+|\bup\b"
_SELECTOR = re.compile(rf"(?:\b(\w+)\()?(?<![\w:])({_NAME})(?:\s*\{{((?:{_STRING}|[^{{}}\"])*)\}})?\s*(\[[^\]]*\])?")
_MATCHER = re.compile(rf"([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*({_STRING})")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
_REPLACED = re.compile(r'label_replace\([^"]*(?:"[^"]*"[^"]*)*?, "(\w+)", "\$1"')


class Selector(NamedTuple):
    """`function(name{matchers}[window]`; "" for the first and the last where they are not there."""

    function: str
    name: str
    matchers: dict[str, str]
    window: str


class Target(NamedTuple):
    """One expression of a panel."""

    board: str
    panel: str
    expression: str
    legend: str


def selectors(expression: str) -> list[Selector]:
    """Return the selectors of an expression."""
    return [
        Selector(match[1] or "", match[2], {m[1]: m[2] + m[3] for m in _MATCHER.finditer(match[3] or "")}, (match[4] or "")[1:-1])
        for match in _SELECTOR.finditer(expression)
    ]


def grouping_labels(expression: str) -> set[str]:
    """Return the labels in by, on, group_left and their like."""
    return {label.strip() for match in _GROUPING.finditer(expression) for label in match[1].split(",") if label.strip()}


def made_labels(expression: str) -> set[str]:
    """Return the labels that label_replace makes."""
    return set(_REPLACED.findall(expression))


def filled(text: str, values: Mapping[str, str]) -> str:
    """Put values in place of $name and ${name}; a variable without one is an error."""
    return re.sub(r"\$\{(\w+)\}|\$(?!\d)(\w+)", lambda match: values[match[1] or match[2]], text)


def quoted(value: str) -> str:
    """Return a value as Grafana writes one of a variable with several: a regular expression inside a string."""
    return re.sub(r"[\\^$*+?.()|\[\]{}/]", r"\\\\\g<0>", value.replace("\\", "\\\\"))


def boards() -> dict[str, dict[str, Any]]:
    """Return the dashboards of dashboards/json by their uid."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "dashboards/json").glob("*.json"))}


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the panels of a dashboard, without the rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def targets(chosen: Mapping[str, Mapping[str, Any]]) -> Iterator[Target]:
    """Yield every expression of these dashboards."""
    for uid, board in chosen.items():
        for panel in panels(board):
            for target in panel["targets"]:
                yield Target(uid, panel["title"], target["expr"], target.get("legendFormat", ""))


def variable_queries(board: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield name, selector and label of a dashboard's variables: label_values(selector, label)."""
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert match, variable["query"]
            yield variable["name"], match[1], match[2]


def rule_files() -> Iterable[Path]:
    """Return the files of rules."""
    return sorted((ROOT / "deploy/prometheus").glob("*.rules.yml"))
