"""The share of a model that attackers recovered, and the limit that an owner sets to it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

from offsite.audit.training import worth
from offsite.errors import OffsiteError

CONTROL = "random weights, all tuned (control)"
NEAR = 0.01  # of the distance from random weights to the full model: closer is as good as the model


@dataclass(frozen=True)
class Attack:
    """What one attacker reached.

    Attributes:
        name: which attacker.
        tokens: training tokens it used; 0 without training.
        value: the task's metric on test rows.
        full: that of the full model, tuned on as many tokens where that helps it.
        recovered: share of the distance from the offer as shipped to ``full``; 1 is all of it, and
            there is no more than that. An attacker may do better than ``full``, which is tuned at
            few rates; ``value`` shows it.
        rate: the learning rate that was best on validation rows.
    """

    name: str
    tokens: int
    value: float
    full: float
    recovered: float
    rate: float | None = None


@dataclass(frozen=True)
class OfferAudit:
    """The outcome: every attack, the control included, and what they are measured against."""

    metric: str
    higher_is_better: bool
    full: float
    shipped: float
    attacks: tuple[Attack, ...]

    @property
    def best(self) -> Attack:
        """The attack that recovered most, of equals the one of the best value; not the control."""
        real = [attack for attack in self.attacks if attack.name != CONTROL]
        return max(real, key=lambda a: (a.recovered, worth(a.value, self.higher_is_better)))

    @property
    def learnt(self) -> bool:
        """Whether the full model, untuned, does better on the text than every tuned control.

        If it does not, the text alone gives what the model gives. Then its shares say nothing of
        the model.
        """
        controls = [attack.value for attack in self.attacks if attack.name == CONTROL]
        best = max((worth(value, self.higher_is_better) for value in controls), default=-inf)
        return worth(self.full, self.higher_is_better) > best


@dataclass(frozen=True)
class Scale:
    """What shares are measured against: the full model, the offer as shipped, random weights."""

    full: float
    shipped: float
    random: float
    higher_is_better: bool

    def better(self, one: float, other: float) -> float:
        """The better of two values; one that is not finite is the worst."""
        return max(one, other, key=lambda value: worth(value, self.higher_is_better))

    def recovered(self, value: float, full: float) -> float:
        """The share that a value closes of the distance from the offer as shipped to the model's.

        All of it, 1, where the value is better than the model's, and where the offer as shipped is
        about as good as the model: then there is nothing left to recover.
        """
        near = NEAR * abs(self.full - self.random)
        lead = (self.full - self.shipped) * (1 if self.higher_is_better else -1)
        if not lead > near:
            return 1.0
        return min(1.0, (value - self.shipped) / (full - self.shipped)) if isfinite(value) else -inf


def check_recovered(found: OfferAudit, most: float) -> None:
    """Refuse an offer from which attackers recover more than its owner allows.

    Args:
        most: the largest share recovered that is allowed; 0.5 is half of the distance.

    Raises:
        OffsiteError: naming the best attacker.
    """
    if found.best.recovered > most:
        raise OffsiteError(
            f"An attacker ({found.best.name}, {found.best.tokens:,} tokens) recovers "
            f"{found.best.recovered:.1%} of the distance to the full model, and --max-recovered "
            f"allows {most:.1%}; nothing was written. Compress the middle more, for example with a "
            "smaller --budget, or allow more."
        )
