"""The teacher and the student of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from offsite.deltas import parse_method
from offsite.exchange.delta import Delta
from offsite.exchange.offer import Offer
from offsite.exchange.side import divide
from offsite.model.blocks import get_blocks, with_own_blocks
from offsite.model.heads import attach_head, head_tensors, load_head
from offsite.model.replay import real_tokens
from offsite.tasks.text.divergence import Predictions, divergence


class Mixture(nn.Module):
    """The teacher: what the owner's models, each with and without the delta, predict together.

    Its logits are ``plugged + strength * ((tuned - emulator) - (plugged - full))``, which is the
    same in log-probabilities, since a constant for each token does not count. With strength 0 it is
    the plugged model; with 1 it is the full model with the change of the emulator's predictions
    (emulated fine-tuning, arXiv 2310.12962; proxy tuning, arXiv 2401.08565).

    Args:
        full, plugged: the owner's model, and the same with the delta.
        emulator, tuned: the emulator, and the same with the delta.
    """

    def __init__(
        self, full: nn.Module, plugged: nn.Module, emulator: nn.Module, tuned: nn.Module,
        strength: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.full, self.plugged, self.emulator, self.tuned = full, plugged, emulator, tuned
        self.strength = strength

    @classmethod
    def of(
        cls, full: nn.Module, plugged: nn.Module, offer: Offer, delta: Delta, strength: float
    ) -> Mixture:
        """The teacher of a delta, whose emulator is that of its offer.

        A model of pictures without the classes of the delta predicts each of them alike.
        """
        labels = delta.manifest.labels
        before = with_classes(full, labels), with_classes(offer.model, labels)
        return cls(before[0], plugged, before[1], with_delta(offer, delta), strength)

    def forward(self, **inputs: Any) -> SimpleNamespace:
        """An output with ``logits`` (batch, length, vocabulary) or (batch, classes), in float32."""
        logits = [model(**inputs).logits.float() for model in self.models()]
        return SimpleNamespace(logits=mixed(*logits, strength=self.strength))

    def models(self) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        """The models, in the order in which :func:`mixed` takes their logits."""
        return self.full, self.plugged, self.emulator, self.tuned


def mixed(
    full: torch.Tensor,
    plugged: torch.Tensor,
    emulator: torch.Tensor,
    tuned: torch.Tensor,
    *,
    strength: float,
) -> torch.Tensor:
    """The logits of a :class:`Mixture`, from those of its models."""
    return plugged + strength * ((tuned - emulator) - (plugged - full))


class Student(nn.Module):
    """The student with its teacher; the plugged model is the student without its change."""

    def __init__(self, student: Any, mixture: Mixture) -> None:
        super().__init__()
        self.student = student
        self.others = (mixture.full, mixture.emulator, mixture.tuned)  # no sub-modules
        self.strength = mixture.strength

    def train(self, mode: bool = True) -> Student:
        """Never: dropout would move a student that is its teacher already."""
        return super().train(False)

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """``KL(teacher || student)`` in nats per token or picture."""
        real = real_tokens(batch)
        with torch.no_grad():
            full, emulator, tuned = (predicted(one, batch, real) for one in self.others)
            with self.student.disable_adapter():
                plugged = predicted(self.student, batch, real)

        def wanted(part: slice) -> torch.Tensor:
            logits = (one.logits(part) for one in (full, plugged, emulator, tuned))
            return mixed(*logits, strength=self.strength)

        return divergence(predicted(self.student, batch, real), wanted)


def predicted(model: nn.Module, batch: dict[str, Any], real: torch.Tensor | None) -> Predictions:
    """The predictions of a language model or a classifier, which always has some."""
    found = Predictions.of(model, batch, real)
    assert found is not None
    return found


def with_classes(model: nn.Module, labels: Sequence[str]) -> nn.Module:
    """A model over the same tensors with a head for these classes; the model itself without any."""
    if not labels:
        return model
    own = with_own_blocks(model, ())
    attach_head(own, labels)
    return own.requires_grad_(False).eval()


def with_delta(offer: Offer, delta: Delta) -> nn.Module:
    """The tuned emulator, which shares with the offer's all that the delta leaves alone.

    The delta must have passed the checks of plugging.
    """
    total = len(get_blocks(offer.model))
    blocks = range(total) if delta.manifest.reach == "all" else offer.manifest.adapter
    own = with_own_blocks(offer.model, blocks)
    attach_head(own, delta.manifest.labels)
    attached = parse_method(delta.manifest.method).attach(own, blocks)
    tensors, head = divide(delta.values(), delta.manifest.head)
    attached.load(tensors)
    load_head(head_tensors(own), head)
    return attached.model.requires_grad_(False).eval()
