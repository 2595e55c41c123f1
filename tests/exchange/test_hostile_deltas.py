"""Deltas of a few kilobytes that ask for gigabytes: refused in 4 s and 200 MB by the system."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import offsite as ot
from offsite.codec import to_json
from offsite.deltas import parse_method
from offsite.exchange.delta import new_delta
from offsite.exchange.delta_contents import PEFT_CONFIG, PEFT_WEIGHTS
from offsite.exchange.file_set import MANIFEST
from offsite.tuner.importing import import_peft
from offsite.tuner.preparing import private_copy
from tests.support.forge import dump, edit, first, header, load
from tests.support.limited import limited
from tests.support.models import language_model

GIANT = 2**36  # bytes: 64 GiB


@pytest.fixture(scope="module")
def pair() -> Any:
    """A model, an offer of it, and its record in memory."""
    model = language_model("llama")
    return model, *ot.make_offer(model, recipe=[ot.Drop(keep=1)])


@pytest.fixture
def delta(pair: Any, tmp_path: Path) -> Path:
    """The folder of an untrained LoRA delta of rank 2."""
    model, offer, record = pair
    method = ot.LoRA(rank=2)
    attached = method.attach(private_copy(offer), offer.manifest.adapter)
    config, tensors = attached.peft_config(), attached.tensors()
    new_delta(offer.manifest, tensors, to_json(method), peft_config=config).save(tmp_path / "d")
    assert limited(lambda: ot.plug(model, ot.Delta.load(tmp_path / "d"), record)) == "done"
    return tmp_path / "d"


def hollow(file: Path, size: int = GIANT) -> None:
    """Make a file claim many bytes that take no room on the disk, and its manifest too."""
    os.truncate(file, size)
    assert file.stat().st_blocks * 512 < 2**20
    content = load(file.parent / MANIFEST)
    content["files"][file.name]["size"] = size
    dump(file.parent / MANIFEST, content)


def giant(folder: Path) -> None:
    """Give the first tensor of a LoRA adapter a rank of 2**26 and 64 GiB of holes."""
    path = folder / PEFT_WEIGHTS
    header(PEFT_WEIGHTS, lambda head: only(head, [2**26, 256], GIANT))(folder)
    hollow(path, path.stat().st_size - 2**10 + GIANT)


def only(head: dict[str, Any], shape: list[int], size: int) -> None:
    """Leave one tensor in a header, of another shape."""
    entry = {**first(head), "shape": shape, "data_offsets": [0, size]}
    name = next(name for name in head if name != "__metadata__")
    head.clear()
    head[name] = entry


def refused(action: Any, words: str) -> None:
    told = limited(action)
    assert told.startswith("OffsiteError: ") and words in told, told


@pytest.mark.parametrize("file", [PEFT_CONFIG, PEFT_WEIGHTS])
def test_a_file_of_holes_is_not_read(file: str, delta: Path) -> None:
    hollow(delta / file)
    refused(lambda: ot.Delta.load(delta), "almost all holes")


def test_an_adapter_of_holes_is_not_imported(pair: Any, delta: Path) -> None:
    giant(delta)
    (delta / MANIFEST).unlink()
    refused(lambda: import_peft(pair[1], delta), "almost all holes")


@pytest.mark.parametrize("rank", [2**20, 2**26, 10**12])
def test_an_adapter_whose_file_names_a_large_rank(rank: int, pair: Any, delta: Path) -> None:
    edit(PEFT_CONFIG, r=rank)(delta)
    refused(lambda: ot.Delta.load(delta), "more than its tensors can hold")
    refused(lambda: import_peft(pair[1], delta), "and its tensors have another")


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "vera", "bottleneck", "prefix", "prompt"])
@pytest.mark.parametrize("large", [4096, 2**20, 2**26])
def test_a_size_that_no_tensor_brings(kind: str, large: int, pair: Any, tmp_path: Path) -> None:
    model, offer, record = pair
    size = {"bottleneck": "size", "prefix": "length", "prompt": "length"}.get(kind, "rank")
    brought = {"layers.0": torch.zeros(min(large, 2**20), dtype=torch.int8)}
    new_delta(offer.manifest, brought, {"kind": kind, size: large}).save(tmp_path / "d")
    refused(lambda: ot.plug(model, ot.Delta.load(tmp_path / "d"), record), "")


def test_projections_that_the_owner_draws_are_bounded() -> None:
    assert parse_method({"kind": "vera", "rank": 4096})
    with pytest.raises(ot.OffsiteError, match="use 1 to 4096"):
        parse_method({"kind": "vera", "rank": 4097})


def test_a_manifest_cannot_claim_what_its_files_lack(delta: Path) -> None:
    content = load(delta / MANIFEST)
    first(content["tensors"])["shape"] = [2**26, 16]
    (delta / MANIFEST).write_text(json.dumps(content))
    refused(lambda: ot.Delta.load(delta).values(), "are not those of the manifest")
