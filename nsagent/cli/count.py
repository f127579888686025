"""A whole number on the command line."""

from __future__ import annotations

import click


class Count(click.IntRange):
    """As click's, whose errors call it an "integer range"."""

    name = "whole number"
