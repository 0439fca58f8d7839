"""What a benchmark needs before it can run: told before anything is fetched."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A file or a set of weights that doesn't ship with twinflow."""

    name: str  # short: "detector"
    what: str  # one line for people
    size: str  # "275 MB"
    licence: str
    source: str  # hub id, URL or package; what it is fetched from, or converted from
    option: str = ""  # of the command line, that names a local copy
    optional: bool = False  # an alternative to another one, or only for part of the scores
