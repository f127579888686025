"""The tour's texts: the same in each language but for the words, and none missing or left over."""

from __future__ import annotations

import re
import string

import pytest

from nsagent.cli import tour
from nsagent.tour.texts import en, zh
from tests.support import ROOT

SOURCES = [*sorted((ROOT / "nsagent/tour").glob("*.py")), ROOT / "nsagent/cli/tour.py"]


def fields(text: str) -> set[str | None]:
    """Return the names in braces."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_each_language_has_the_same_texts_with_the_same_fields() -> None:
    assert list(zh.TEXTS) == list(en.TEXTS)
    assert {key: fields(text) for key, text in zh.TEXTS.items()} == {key: fields(text) for key, text in en.TEXTS.items()}


def test_no_line_is_too_wide_for_a_terminal() -> None:
    for key, text in zh.TEXTS.items():
        assert key == "untraced.asked" or re.search("[一-鿿]", text), key
        for line in text.splitlines():
            assert sum(2 if ord(char) > 0x2E80 else 1 for char in line) <= 112, key
    assert max(len(line) for text in en.TEXTS.values() for line in text.splitlines()) <= 112


def test_each_text_is_used() -> None:
    """By its key, or by one that is put together of a name."""
    sources = "".join(path.read_text() for path in SOURCES).replace("'", '"')
    for key in en.TEXTS:
        head, _, last = key.partition(".")
        assert f'"{key}"' in sources or (head in ("title", "evidence") and (last in tour._NAMES or f'"{last}"' in sources)), key


@pytest.mark.parametrize(
    ("locale", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "de_DE"}, "en"),
        ({"LC_MESSAGES": "zh_TW"}, "zh"),
    ],
)
def test_the_language_is_the_readers(monkeypatch: pytest.MonkeyPatch, locale: dict[str, str], language: str) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in locale.items():
        monkeypatch.setenv(name, value)
    assert tour._language() == language
