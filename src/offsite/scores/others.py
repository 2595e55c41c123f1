"""Scores that others measured: read, checked against the same settings, and merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offsite.files import read_json
from offsite.scores.scores import Scores
from offsite.scores.settings import check_same


@dataclass(frozen=True)
class Others:
    """Score files of other parties, as ``offsite score --json`` wrote them.

    Attributes:
        files: what each file holds.
    """

    files: Mapping[Path, Mapping[str, Any]]

    @classmethod
    def read(cls, paths: Iterable[Path], facts: Mapping[str, Any]) -> Others:
        """Read files and compare them with one's own settings, before hours of scoring.

        Raises:
            OffsiteError: not a file of scores, or other settings than ``facts``.
        """
        others = cls({path: read_json(path) for path in paths})
        for path, theirs in others.files.items():
            Scores.from_json(theirs, str(path))
        others.check(facts)
        return others

    def check(self, facts: Mapping[str, Any]) -> None:
        """Refuse files with other settings than ``facts``.

        Raises:
            OffsiteError: naming the file and the setting.
        """
        for path, theirs in self.files.items():
            check_same(facts, theirs, path)

    def merge(self, own: Scores) -> Scores:
        """One's own scores together with theirs.

        Raises:
            OffsiteError: two different values of one score.
        """
        for path, theirs in self.files.items():
            own = own.merge(Scores.from_json(theirs, str(path)))
        return own

    def details(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Details by score; one's own stand before theirs."""
        found: dict[str, Any] = {}
        for theirs in self.files.values():
            found = {**(theirs.get("details") or {}), **found}
        return {**found, **own}
