"""The committed offer and delta of format version 1 keep loading to the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from offsite.exchange.authenticity import digest
from offsite.exchange.delta import Delta
from offsite.exchange.manifest import OfferManifest, read_manifest
from offsite.exchange.offer import Offer
from offsite.exchange.record import Record
from offsite.exchange.side import sides_of

GOLDEN = Path(__file__).parent / "golden"


def test_the_golden_offer_loads_bit_for_bit() -> None:
    offer = Offer.load(GOLDEN / "offer")
    expected = load_file(GOLDEN / "expected.safetensors")
    loaded = dict(offer.model.named_parameters())
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name
    assert offer.manifest.adapter == (0, 1, 3)


def test_the_golden_delta_and_record_load() -> None:
    delta = Delta.load(GOLDEN / "delta")
    tensors = delta.values()
    stored = load_file(GOLDEN / "delta" / "adapter_model.safetensors")
    assert all(torch.equal(tensors[name], stored[name]) for name in stored)
    assert float(sum(t.double().abs().sum() for t in tensors.values())) == float(
        sum(t.double().abs().sum() for t in stored.values())
    )
    offer = read_manifest(GOLDEN / "offer", OfferManifest)
    entry = Record.load(GOLDEN / "record.json").find(delta.manifest.parent)
    assert entry.offer == offer.id and entry.contract == offer.contract
    assert entry.adapter == (0, 1, 5) and delta.manifest.adapter == entry.emulator_adapter


def test_a_manifest_survives_being_read_and_written() -> None:
    path = GOLDEN / "offer" / "manifest.json"
    manifest = read_manifest(GOLDEN / "offer", OfferManifest)
    assert manifest.model_dump_json(indent=1) + "\n" == path.read_text()


def test_the_golden_side_tensors_load_bit_for_bit() -> None:
    """An offer with a prompt decoder, of before there were groups: its digest stays the same."""
    offer = Offer.load(GOLDEN / "side" / "offer")
    group = sides_of(offer.model)["prompt_decoder"]
    stored = load_file(GOLDEN / "side" / "offer" / "prompt_decoder.safetensors")
    assert group.tensors.keys() == stored.keys()
    assert all(torch.equal(group.tensors[name], value) for name, value in stored.items())
    data = json.loads((GOLDEN / "side" / "record.json").read_text())
    entry = Record.model_validate(data).find(offer.manifest.id)
    assert entry.side == {"prompt_decoder": group.hash}
    assert digest(offer.manifest) in entry.sent
