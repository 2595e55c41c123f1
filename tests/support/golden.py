"""Make the golden offer and delta: tiny, committed, and loadable by every later release.

    python -m tests.support.golden

Only run it when the format changes on purpose; then raise the schema version, and keep the old
folder beside the new one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from offsite.codec import to_json
from offsite.compress.drop import Drop
from offsite.deltas.reparameterisation.lora import LoRA
from offsite.exchange.delta import new_delta
from offsite.exchange.manifest import OfferManifest
from offsite.exchange.offer import Offer
from offsite.model.split import ends
from offsite.model.tensors import save_tensors
from offsite.owner.offering import make_offer
from offsite.tuner.preparing import private_copy
from tests.support.models import language_model

GOLDEN = Path(__file__).parents[1] / "exchange" / "golden"


def lora_delta(offer: Offer, rank: int = 2) -> Any:
    """A LoRA delta of an offer with random numbers instead of tuned ones."""
    method = LoRA(rank=rank)
    attached = method.attach(private_copy(offer), offer.manifest.adapter)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator) * 0.05
        for name, tensor in sorted(attached.tensors().items())
    }
    return new_delta(offer.manifest, tensors, to_json(method), peft_config=attached.peft_config())


def make(folder: Path, tokenizer: Any, **changes: Any) -> tuple[OfferManifest, Any]:
    """A model, an offer of it (two blocks, one of the middle, one block), a delta, the record."""
    model = language_model("llama", **changes)
    model.save_pretrained(folder / "model")
    offer, record = make_offer(
        model, adapter=ends(2, 1), recipe=[Drop(keep=1)], processor=tokenizer, name="tiny"
    )
    offer.save(folder / "offer")
    record.save(folder / "record.json")
    delta = lora_delta(offer)
    delta.save(folder / "delta")
    return offer.manifest, delta


def main() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir()
    make(GOLDEN, None, vocab_size=32, hidden_size=8, intermediate_size=8, head_dim=4)
    shutil.rmtree(GOLDEN / "model")
    offer = Offer.load(GOLDEN / "offer")
    state = {name: tensor.clone() for name, tensor in offer.model.named_parameters()}
    save_tensors(state, GOLDEN / "expected.safetensors")


if __name__ == "__main__":
    main()
