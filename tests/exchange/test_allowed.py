"""What an offer says by accident: nothing that its reader does not need."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.compress.drop import Drop
from offsite.compress.noise import Noise
from offsite.exchange.allowed import without_comments
from offsite.exchange.commitment import commit, commits_to
from offsite.exchange.manifest import OfferManifest, read_manifest
from offsite.exchange.offer import Offer
from offsite.exchange.record import Record
from offsite.model.split import ends
from offsite.model.stored import model_fingerprint
from offsite.owner.offering import make_offer
from tests.support.models import LANGUAGE, inputs_for, language_model, output_of

SECRETS = ("zeus", "acme", "alice", "hospital", "wandb", "ship before", "INTERNAL", "original_num")


def talkative(folder: Path) -> Path:
    """A checkpoint whose files say things about their owner, in a folder with a telling name."""

    def edit(name: str, **more: Any) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **more}))

    edit(
        "config.json", training_corpus="hospital-records-2025", wandb_run="zeus-42",
        author_email="alice@acme.example", secret_note="do not ship before Q3",
        original_num_hidden_layers=6, task_specific_params={"summary": {"prefix": "INTERNAL"}},
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default", "note": "made by alice!"},
    )  # fmt: skip
    edit("generation_config.json", internal_note="alice")
    edit("tokenizer_config.json", owner_comment="alice@acme.example", build_host="gpu17.acme")
    template = "{# internal: see wiki.acme #}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return folder.rename(folder.with_name("zeus-internal-2026"))


@pytest.mark.parametrize("recipe", [[Drop(keep=1)], [Noise(scale=0.5)]], ids=["plain", "special"])
def test_nothing_private_stands_in_an_offer(recipe: Any, model_folder: Any, tmp_path: Path) -> None:
    source = talkative(model_folder("llama"))
    make_offer(source, adapter=ends(2, 1), recipe=recipe, device="cpu")[0].save(tmp_path / "offer")
    for path in (tmp_path / "offer").iterdir():
        found = [word for word in SECRETS if word.encode() in path.read_bytes()]
        assert not found, (path.name, found)
    offer = Offer.load(tmp_path / "offer")
    assert offer.manifest.model_name == "llama"
    assert (
        offer.processor.apply_chat_template(
            [{"role": "user", "content": "the cat"}], tokenize=False
        )
        == "the cat"
    )
    assert Record.load(tmp_path / "offer.record.json").model_name == "zeus-internal-2026"


@pytest.mark.parametrize("family", LANGUAGE)
def test_what_is_left_computes_the_same(family: str, tmp_path: Path) -> None:
    model = language_model(family)
    offer, _ = make_offer(model, adapter=ends(2, 1), recipe=[Drop(keep=2)], device="cpu")
    before = output_of(offer.model, batch := inputs_for(model))
    offer.save(tmp_path / "offer")
    assert torch.equal(output_of(Offer.load(tmp_path / "offer").model, batch), before)


def test_depth_does_not_stand_in_max_window_layers(tmp_path: Path) -> None:
    model = language_model("qwen2", max_window_layers=6)
    offer, _ = make_offer(model, adapter=ends(1, 1), recipe=[Drop(keep=1)], device="cpu")
    offer.save(tmp_path / "offer")
    assert json.loads((tmp_path / "offer" / "config.json").read_text())["max_window_layers"] == 3


def test_the_commitment_names_no_model_but_holds_the_owner_to_one(tmp_path: Path) -> None:
    model = language_model("llama")
    print_ = model_fingerprint(model)
    offers = [make_offer(model, adapter=ends(1, 1), device="cpu") for _ in range(2)]
    found = [offer.manifest.fingerprint for offer, _ in offers]
    assert len({*found, print_}) == 3  # another salt each time
    for offer, record in offers:
        salt = record.offers[0].salt
        assert salt is not None and offer.manifest.fingerprint == commit(print_, salt)
        assert commits_to(offer.manifest.fingerprint, record.fingerprint, salt)
        other = copy.deepcopy(model)
        other.lm_head.weight.data[0, 0] += 1
        assert not commits_to(offer.manifest.fingerprint, model_fingerprint(other), salt)
    offers[0][0].save(tmp_path / "offer")
    assert print_ not in (tmp_path / "offer" / "manifest.json").read_text()


def test_offers_from_before_the_commitment_load() -> None:
    golden = Path(__file__).parent / "golden"
    manifest = read_manifest(golden / "offer", OfferManifest)
    record = Record.load(golden / "record.json")
    assert commits_to(manifest.fingerprint, record.fingerprint, record.offers[0].salt)


def test_comments_of_a_template_lose_their_text_and_nothing_else() -> None:
    template = "a {#- see wiki.acme -#} b{% if x %}{# note #}c{% endif %} {{ '{# kept #}' }}"
    assert "kept" in without_comments(template)
    assert without_comments("a {#- note -#} b") == "a {#--#} b"
    assert without_comments("{% broken") == "{% broken"
