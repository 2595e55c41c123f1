"""Options of owner-side decoding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offsite.cli import options as o
from offsite.errors import OffsiteError

if TYPE_CHECKING:
    from offsite.owner.decode import Decoding

Text = Annotated[
    str | None,
    typer.Option(
        help="Distil what the tuned emulator learnt into the tuned model, on public data: FILE, "
        "sample (text that the model writes) or sample:FILE (text that continues its rows)."
    ),
]
Given = Annotated[
    Path | None, typer.Option(help="The offer that the delta was tuned on, for --decode.")
]
Steps = Annotated[int, typer.Option(help="Steps of 8 rows or pictures for --decode.", min=1)]
Strength = Annotated[
    float, typer.Option(help="Weight of the emulator for --decode: above 0, at most 1.")
]


@dataclass(frozen=True)
class DecodeOptions:
    """Whether and how the owner decodes a delta."""

    decode: Text = None
    offer: Given = None
    decode_steps: Steps = 300
    decode_strength: Strength = 0.4
    device: o.Device = None

    def load(self) -> Decoding | None:
        """The decoding, with its offer read; None where none is asked for.

        Raises:
            OffsiteError: data without an offer, or an offer without data; options that cannot be
                used; no such offer.
        """
        if self.decode is None and self.offer is not None:
            raise OffsiteError(
                "--offer has no effect without --decode; add --decode, or leave --offer out."
            )
        if self.decode is None:
            return None
        if self.offer is None:
            raise OffsiteError(
                "--decode needs the offer that the delta was tuned on; give its folder with "
                "--offer."
            )
        from offsite.exchange.offer import Offer
        from offsite.owner.decode import Decode, Decoding
        from offsite.training.devices import pick_device

        how = Decode(self.decode, strength=self.decode_strength, steps=self.decode_steps)
        device = pick_device(self.device)
        return Decoding(how, Offer.load(self.offer, require_signature=False), device)
