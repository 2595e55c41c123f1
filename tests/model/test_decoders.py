"""The decoder of an encoder-decoder family counts its blocks in a key of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from offsite.compress.drop import Drop
from offsite.compress.importance import bypass
from offsite.exchange.offer import Offer
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from tests.support.models import inputs_for, output_of


@pytest.mark.parametrize("name", ["BartConfig", "BlenderbotConfig"])
def test_a_bare_decoder_drops_blocks(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, name)(
        vocab_size=300, d_model=16, decoder_layers=6, encoder_layers=6, decoder_ffn_dim=32,
        decoder_attention_heads=2, is_decoder=True, is_encoder_decoder=False, pad_token_id=0,
        bos_token_id=0, eos_token_id=0, max_position_embeddings=128,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    offer, record = make_offer(tmp_path / "model", adapter=ends(1, 1), recipe=[Drop(keep=2)])
    offer.save(tmp_path / "offer")
    emulator, batch = Offer.load(tmp_path / "offer").model, inputs_for(model)
    with bypass(model, {*range(6)} - {0, 5, *record.offers[0].middle}):
        assert torch.equal(output_of(emulator, batch), output_of(model, batch))
