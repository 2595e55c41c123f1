"""The input of a report: rows of results grouped into settings, and manifests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from offsite.codec import validate
from offsite.errors import OffsiteError
from offsite.exchange.file_set import MANIFEST, check_names
from offsite.exchange.manifest import (
    DeltaManifest,
    Manifest,
    OfferManifest,
    check_kind,
    says_delta,
)
from offsite.files import parse_json, read_json
from offsite.scores.scores import KEYS, Scores
from offsite.scores.statistics import Interval, Spread, over_seeds, spread

RESULTS = ("results.json", "lab.json")


@dataclass(frozen=True)
class Setting:
    """One recipe with one delta method, on one model and task, over its seeds.

    Attributes:
        model: as the rows name it, with its whole path.
        rows: the results of each seed, as the lab writes them.
        name: what it is called, where not everything need be said.
        tag: what tells it from others of the same names, which were run in other ways.
    """

    model: str
    task: str
    recipe: str
    delta: str
    rows: tuple[Mapping[str, Any], ...]
    name: str = ""
    tag: str = ""

    @property
    def label(self) -> str:
        """Its name; by default recipe and delta in few words."""
        plain = " · ".join(part for part in (self.recipe, self.delta) if part) or "this run"
        return f"{self.name or plain}{self.tag}"

    def fact(self, key: str) -> str:
        """What all its rows say of one key; empty where they say nothing."""
        return str(self.rows[0].get(key, ""))

    @property
    def metric(self) -> str:
        """What the scores are."""
        return str(self.rows[0]["metric"])

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return bool(self.rows[0]["higher_is_better"])

    def values(self, key: str) -> list[float]:
        """One score or figure of every seed that has it."""
        found = [row["scores"].get(key) if key in KEYS else row.get(key) for row in self.rows]
        return [float(value) for value in found if isinstance(value, (int, float))]

    def spread(self, key: str) -> Spread | None:
        """Mean and deviation of one score or figure; None where no seed has it."""
        values = self.values(key)
        return spread(values) if values else None

    def mean(self, key: str) -> float | None:
        """The mean over seeds."""
        found = self.spread(key)
        return None if found is None else found.mean

    def error(self, key: str) -> float | None:
        """Deviation over seeds; for one seed the standard error over items, where known."""
        found = self.spread(key)
        if found is not None and found.std is not None:
            return found.std
        stderr = self.rows[0].get("details", {}).get(key, {}).get("stderr")
        return float(stderr) if isinstance(stderr, (int, float)) else None

    def intervals(self) -> dict[str, Interval]:
        """Paired bootstrap intervals over items, of the mean over seeds."""
        return over_seeds([row.get("details", {}) for row in self.rows], self.higher)


@dataclass(frozen=True)
class Run:
    """One input of the report.

    Attributes:
        settings: grouped results; empty for a folder.
        command, environment: how it was made.
        importance: a score for each block, where the run measured one.
        manifest: of an offer or a delta folder.
    """

    name: str
    settings: tuple[Setting, ...] = ()
    command: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    importance: Mapping[str, Sequence[float]] = field(default_factory=dict)
    manifest: Mapping[str, Any] | None = None


def read_run(path: str | Path) -> Run:
    """Read one input of a report.

    Args:
        path: a lab's results (``.json``, or the folder with ``results.json``), scores as
            ``offsite score --json`` writes them, or an offer or delta folder.

    Raises:
        OffsiteError: none of these.
    """
    path = Path(path)
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return Run(path.name, manifest=_manifest(path))
        found = next((path / name for name in RESULTS if (path / name).is_file()), None)
        if found is None:
            raise OffsiteError(
                f"The folder '{path}' holds neither results.json nor {MANIFEST}; name a run of the "
                "lab, or an offer or delta folder."
            )
        return make_run(_json(found), path.name)
    return make_run(_json(path), path.stem)


def _manifest(folder: Path) -> dict[str, Any]:
    """What an offer or a delta says it is; somebody else may have written it."""
    data = read_json(folder / MANIFEST)
    kind = DeltaManifest if says_delta(data) else OfferManifest
    check_kind(data, kind.model_fields["kind"].default, folder)
    manifest: Manifest = validate(kind, data, folder / MANIFEST)
    check_names(folder, manifest.files)
    return manifest.model_dump(mode="json")


def _json(path: Path) -> Any:
    """Strict JSON of one's own, however large: a lab keeps every item's score."""
    if not path.is_file():
        raise OffsiteError(f"There is no file '{path}'; check the path.")
    return parse_json(path.read_bytes(), path)


def make_run(data: Any, name: str = "run") -> Run:
    """A run from what the lab wrote: ``{"rows": [...], "command", "environment", ...}``.

    Raises:
        OffsiteError: no rows, or a row without scores.
    """
    if isinstance(data, list):
        data = {"rows": data}
    if isinstance(data, Mapping) and "scores" in data:
        data = {"rows": [data]}
    importance = data.get("importance") or {} if isinstance(data, Mapping) else {}
    if not isinstance(importance, Mapping):
        importance = {"importance": importance}
    rows = data.get("rows", []) if isinstance(data, Mapping) else None
    if rows == [] and importance:
        return Run(name, importance=importance)
    if not isinstance(rows, list) or not rows:
        raise OffsiteError(f"'{name}' holds no rows of results; give what 'offsite lab' wrote.")
    for row in rows:
        Scores.from_json(row, name)
    command, settings = data.get("command", ""), tuple(group(rows))
    return Run(
        name,
        settings,
        command if isinstance(command, str) else " ".join(map(str, command)),
        data.get("environment") or {},
        {**importance, **learned(settings)},
    )


def learned(settings: Iterable[Setting]) -> dict[str, list[float]]:
    """The importance that recipes learned, as the mean over seeds; equal ones appear once."""
    found: dict[tuple[float, ...], str] = {}
    for setting in settings:
        rows = [row["importance"] for row in setting.rows if row.get("importance")]
        if rows:
            means = tuple(sum(values) / len(values) for values in zip(*rows, strict=True))
            found.setdefault(means, f"learned for {setting.recipe or setting.label}")
    return {name: list(values) for values, name in found.items()}


def with_short_labels(runs: Sequence[Run]) -> tuple[list[Run], str]:
    """The runs with short labels: a method that all settings share is said once.

    Returns:
        The runs, and what they share (``"delta lora"``; empty where they differ).
    """
    settings = [setting for run in runs for setting in run.settings]
    methods = {setting.delta for setting in settings}
    if (
        len(settings) < 2
        or len(methods) > 1
        or methods == {""}
        or not all(s.recipe for s in settings)
    ):
        return list(runs), ""
    short = [
        replace(run, settings=tuple(replace(s, name=s.recipe) for s in run.settings))
        for run in runs
    ]
    return short, f"delta {methods.pop()}"


NAMES = ("model", "task", "recipe", "delta")
ALIKE = ("eval_data", "max_length")  # scores are compared where these are the same


def group(rows: Iterable[Mapping[str, Any]]) -> list[Setting]:
    """Rows that differ by their seed alone, in the order of their first appearance."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = tuple(str(row.get(k, "")) for k in (*NAMES, *ALIKE, "setup"))
        groups.setdefault(key, []).append(row)
    setups: dict[tuple[str, ...], list[str]] = {}
    for key in groups:
        setups.setdefault(key[:-1], []).append(key[-1])
    return [
        Setting(key[0], key[1], key[2], key[3], tuple(rows), tag=tag_of(key[-1], setups[key[:-1]]))
        for key, rows in groups.items()
    ]


def tag_of(setup: str, among: Sequence[str]) -> str:
    """``" (setup 2)"`` for the second of several ways to run the same; else nothing."""
    return f" (setup {among.index(setup) + 1})" if len(among) > 1 else ""


def best(settings: Sequence[Setting]) -> Setting:
    """The setting with the best plug-in score of those that hold something back.

    An emulator that is the whole middle keeps nothing back, so it is the best only where there is
    nothing else. Without any plug-in score the first setting is returned.
    """
    return ranked([s for s in settings if not sends_all(s)] or settings)[0]


def sends_all(setting: Setting) -> bool:
    """Whether the whole middle leaves verbatim."""
    share = setting.mean("verbatim")
    return share is not None and share > 0.999


def ranked(settings: Sequence[Setting]) -> list[Setting]:
    """The best plug-in score first; those without one last, in their order."""

    def place(setting: Setting) -> float:
        plug = setting.mean("plug_in")
        return float("inf") if plug is None else -plug if setting.higher else plug

    return sorted(settings, key=place)


def show(value: float | None, metric: str, *, signed: bool = False) -> str:
    """A score as people read it: shares in percent, the rest with four digits."""
    if value is None:
        return "-"
    plus = "+" if signed and value > 0 else ""
    if metric in ("accuracy", "accuracy_norm", "exact_match"):
        return f"{plus}{100 * value:.1f}{' points' if signed else '%'}"
    return f"{plus}{value:.3f}" if abs(value) < 1000 else f"{plus}{value:.4g}"


def show_bytes(count: float | None) -> str:
    """A size in units of 1000."""
    if count is None:
        return "-"
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError
