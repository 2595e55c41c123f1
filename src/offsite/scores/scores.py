"""The six scores of a setting, and the figures derived from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from offsite.codec import first_fault
from offsite.errors import OffsiteError

KEYS = ("zero_shot", "full_tuned", "emulator_zero_shot", "emulator_tuned", "healed", "plug_in")
DERIVED = ("recovered", "gap", "margin", "verbatim")
TITLES = {
    "zero_shot": "full zero-shot",
    "full_tuned": "full fine-tuned",
    "emulator_zero_shot": "emulator zero-shot",
    "emulator_tuned": "emulator fine-tuned",
    "healed": "emulator healed",
    "plug_in": "plug-in",
}


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _File(BaseModel):
    """What a scores file holds, of what is read of it."""

    scores: dict[str, Number | None]
    metric: Annotated[str, Field(strict=True)]
    higher_is_better: Annotated[bool, Field(strict=True)]
    verbatim: Number | None = None
    details: dict[str, dict[str, Any]] | None = None


@dataclass(frozen=True)
class Scores:
    """Any subset of the six scores of one setting; None where unknown.

    No party can compute all six in a real deployment, so partial scores merge.

    Attributes:
        metric: ``"loss"`` in nats per token, ``"accuracy"`` ...
        higher_is_better: direction of the metric.
        healed: the emulator when every weight of the offer is tuned on the private data, for the
            same steps and at the best of several learning rates. It is what a tuner gets who
            keeps the offer and does not need the owner.
        verbatim: share of all parameters that leave verbatim, 0..1.
    """

    metric: str
    higher_is_better: bool
    zero_shot: float | None = None
    full_tuned: float | None = None
    emulator_zero_shot: float | None = None
    emulator_tuned: float | None = None
    healed: float | None = None
    plug_in: float | None = None
    verbatim: float | None = None

    @property
    def recovered(self) -> float | None:
        """``(plug - zs) / (ft - zs)``: the share of full fine-tuning's gain that plugging keeps.

        None where full fine-tuning gained nothing: there is no share of that.
        """
        plug, zero, full = self.plug_in, self.zero_shot, self.full_tuned
        if plug is None or zero is None or full is None:
            return None
        if (full - zero) * (1 if self.higher_is_better else -1) <= 0:
            return None
        return (plug - zero) / (full - zero)

    @property
    def gap(self) -> float | None:
        """Plug-in against tuned emulator, signed so that larger is better for the owner."""
        return self._over(self.emulator_tuned)

    @property
    def margin(self) -> float | None:
        """Plug-in against healed emulator, signed so that larger is better for the owner.

        A data owner can tune more of an offer than the adapter, so this is the
        number that protects: what the plugged model is worth to a tuner who keeps everything.
        """
        return self._over(self.healed)

    def _over(self, other: float | None) -> float | None:
        """How much better the plug-in is than another score."""
        if self.plug_in is None or other is None:
            return None
        return (1 if self.higher_is_better else -1) * (self.plug_in - other)

    def merge(self, other: Scores) -> Scores:
        """Both together; a score that both have must be the same.

        Raises:
            OffsiteError: another metric, or two different values for one score.
        """
        if (self.metric, self.higher_is_better) != (other.metric, other.higher_is_better):
            raise OffsiteError(
                f"Scores of '{self.metric}' and of '{other.metric}' cannot be merged; score both "
                "with one metric."
            )
        changes = {}
        for key in (*KEYS, "verbatim"):
            mine, theirs = getattr(self, key), getattr(other, key)
            if mine is not None and theirs is not None and mine != theirs:
                raise OffsiteError(
                    f"Two different values of '{key}' ({mine:.6g} and {theirs:.6g}) cannot be "
                    "merged, because they come from different models, data or settings; score "
                    "both in the same way."
                )
            changes[key] = mine if mine is not None else theirs
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """The scores under ``scores``, unknown ones absent, and the derived figures."""
        known = {key: getattr(self, key) for key in KEYS if getattr(self, key) is not None}
        derived = {key: getattr(self, key) for key in DERIVED if getattr(self, key) is not None}
        return {
            "scores": known,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            **derived,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], name: str) -> Scores:
        """Read what :meth:`to_json` wrote; ``name`` is that of the file, for messages.

        Raises:
            OffsiteError: not such an object.
        """
        try:
            found = _File.model_validate(data)
        except ValidationError as error:
            where, why = first_fault(error)
            raise OffsiteError(
                f"'{name}' is not a scores file ({where or 'its top level'}: {why}); give one that "
                "'offsite score --json' wrote, with 'scores', 'metric' and 'higher_is_better'."
            ) from error
        known = {key: value for key, value in found.scores.items() if key in KEYS}
        return cls(found.metric, found.higher_is_better, **known, verbatim=found.verbatim)


def check_role(role: str | None, paths: int) -> None:
    """Refuse a name that is not that of a score, or one name for several paths.

    Raises:
        OffsiteError: saying which.
    """
    if role is not None and role not in KEYS:
        raise OffsiteError(f"'{role}' is not a score; choose one of: {', '.join(KEYS)}.")
    if role is not None and paths > 1:
        raise OffsiteError("--as names the score of a single path; score the paths one at a time.")
