"""Hostile offers and deltas: each gets its own sentence, and nothing of it is loaded or written."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta
from offsite.exchange.file_set import copy_verified
from offsite.exchange.manifest import read_manifest
from offsite.exchange.offer import Offer
from offsite.exchange.record import Record
from offsite.model.checkpoint import load_model
from offsite.owner.plugging import plug
from tests.support.attacks import COMMON, DELTA, OFFER, PLUG
from tests.support.forge import manifest
from tests.support.golden import make

WEIGHTS = {"offer": "model.safetensors", "delta": "adapter_model.safetensors"}
ATTACKS = [
    *[(kind, name, make(WEIGHTS[kind]), text) for kind in WEIGHTS for name, make, text in COMMON],
    *[("offer", *rest) for rest in OFFER],
    *[("delta", *rest) for rest in DELTA],
]


@pytest.fixture(scope="session")
def exchange(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A folder with ``model``, ``offer``, ``delta`` (LoRA) and ``record.json``."""
    folder = tmp_path_factory.mktemp("exchange")
    make(folder, tokenizer)
    return folder


@pytest.fixture
def copy_of(exchange: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a fresh copy of ``offer`` or ``delta``."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(exchange / name, tmp_path / "in" / name))

    return copy


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("kind", "attack", "message"),
    [
        pytest.param(kind, attack, text, id=f"{kind}: {name}")
        for kind, name, attack, text in ATTACKS
    ],
)
def test_is_refused(
    kind: str, attack: Any, message: str, copy_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy_of(kind)
    attack(folder)
    before = listing(tmp_path)
    with pytest.raises(OffsiteError, match=message) as caught:
        loaded: Any = Offer.load(folder) if kind == "offer" else Delta.load(folder)
        loaded.values()  # a delta reads its tensors late
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("attack", "message"), [pytest.param(a, text, id=name) for name, a, text in PLUG]
)
def test_is_refused_when_plugged(
    attack: Any, message: str, exchange: Path, copy_of: Callable[[str], Path]
) -> None:
    folder = copy_of("delta")
    attack(folder)
    model = load_model(exchange / "model")
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with pytest.raises(OffsiteError, match=message):
        plug(model, Delta.load(folder), Record.load(exchange / "record.json"))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.named_parameters())


def test_the_good_ones_are_accepted(exchange: Path, tmp_path: Path) -> None:
    offer = Offer.load(exchange / "offer")
    assert offer.processor is not None
    delta = Delta.load(exchange / "delta")
    record = shutil.copy(exchange / "record.json", tmp_path / "record.json")
    plugged = plug(exchange / "model", delta, Record.load(record))
    assert len(plugged.model.layers) == 6


def test_another_model_is_refused(exchange: Path) -> None:
    model = load_model(exchange / "model")
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(OffsiteError, match="made for another model"):
        plug(model, Delta.load(exchange / "delta"), Record.load(exchange / "record.json"))


def test_a_file_swapped_after_the_check_is_refused(
    copy_of: Callable[[str], Path], tmp_path: Path
) -> None:
    delta = Delta.load(copy_of("delta"))
    assert delta.folder is not None
    path = delta.folder / WEIGHTS["delta"]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(OffsiteError, match="changed while it was read"):
        delta.values()
    assert delta.tensors is None
    folder = copy_of("offer")
    from offsite.exchange.manifest import OfferManifest

    files = read_manifest(folder, OfferManifest).files
    (folder / "config.json").write_text("{}")
    target = tmp_path / "private"
    target.mkdir()
    with pytest.raises(OffsiteError, match="changed while it was read"):
        copy_verified(folder, {"config.json": files["config.json"]}, target)
    assert not list(target.iterdir())


def test_the_ledger_refuses_replays(exchange: Path, tmp_path: Path) -> None:
    record = Record.load(exchange / "record.json")
    delta = Delta.load(exchange / "delta").manifest
    record.check_fresh(delta.parent, delta.id, delta.round)
    path = tmp_path / "record.json"
    record.accept(delta.parent, delta.id, delta.round).save(path)
    assert path.stat().st_mode & 0o077 == 0, "the record is the owner's alone"
    known = Record.load(path)
    with pytest.raises(OffsiteError, match="plugged already"):
        known.check_fresh(delta.parent, delta.id, delta.round)
    with pytest.raises(OffsiteError, match="each round accepts one"):
        known.check_fresh(delta.parent, "f" * 32, delta.round)
    with pytest.raises(OffsiteError, match="round 1 is open"):
        known.check_fresh(delta.parent, "f" * 32, delta.round + 1)
    with pytest.raises(OffsiteError, match="accepted meanwhile"):
        record.accept(delta.parent, "e" * 32, delta.round).save(path)  # a race lost
    record.save(path)  # a copy from before the acceptance
    assert Record.load(path).find(delta.parent).accepted


def test_nothing_of_the_owners_machine_leaves(exchange: Path, tmp_path: Path) -> None:
    from offsite.compress.drop import Drop
    from offsite.owner.offering import make_offer

    model = load_model(exchange / "model")
    model.config.auto_map = {"AutoModel": "alice/private--modeling.Net"}
    model.config.output_dir = "/home/alice/secret-project"
    tokenizer = Offer.load(exchange / "offer").processor
    tokenizer.init_kwargs |= {"special_tokens_map_file": "/home/alice/.cache/x.json"}
    offer, _ = make_offer(model, recipe=[Drop(keep=1)], processor=tokenizer)
    offer.save(tmp_path / "offer")
    Offer.load(tmp_path / "offer")
    names = ("alice", str(exchange), str(tmp_path), os.environ.get("HOME", "/root"))
    for folder in (tmp_path / "offer", exchange / "offer", exchange / "delta"):
        for path in folder.iterdir():
            text = path.read_bytes().decode("latin-1")
            found = [name for name in names if re.search(rf"{re.escape(name)}\b", text)]
            assert not found, f"{path.name} holds {found}"


def test_expiry_needs_a_zone(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("offer")
    manifest(expires="2030-01-01T00:00:00+00:00")(folder)
    assert Offer.load(folder).manifest.expires is not None
