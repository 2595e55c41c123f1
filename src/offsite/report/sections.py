"""The sections of a report: settings whose scores are comparable, and their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from offsite.report.runs import ALIKE, Setting


def by_task(settings: Iterable[Setting]) -> dict[tuple[str, str, str], list[Setting]]:
    """Settings whose scores can be compared: by model, task and metric, as short names.

    Where those hide a difference (two folders of one name, other data or another length), the
    names say more.
    """
    found: dict[tuple[str, ...], list[Setting]] = {}
    for s in settings:
        key = (s.model, s.task, s.metric, *(s.fact(k) for k in ALIKE))
        found.setdefault(key, []).append(s)
    models = list(dict.fromkeys(key[0] for key in found))
    shown: dict[tuple[str, str, str], list[Setting]] = {}
    for key, some in found.items():
        model, (task, metric) = short_path(key[0], models), key[1:3]
        rivals = [k for k in found if k[:3] == key[:3] and k != key]
        if rivals:
            names = {k: found[k][0].fact("eval_name") or "data unknown" for k in (key, *rivals)}
            task += f" ({names[key]}"
            alike = [k for k in rivals if names[k] == names[key]]
            if alike:
                task += f" {key[3][:6]}, {key[4]} tokens"
            task += ")"
        shown.setdefault((model, task, metric), []).extend(some)
    return shown


def short_path(path: str, among: Sequence[str]) -> str:
    """The end of a path, of as few parts as tell it from the others."""
    parts = Path(path).parts
    for count in range(1, len(parts)):
        end = parts[-count:]
        if not any(Path(other).parts[-count:] == end for other in among if other != path):
            return "/".join(end)
    return path
