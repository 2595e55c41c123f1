"""Cards the hub understands, and folders that survive a trip over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from offsite.compress.drop import Drop
from offsite.deltas.reparameterisation.lora import LoRA
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta
from offsite.exchange.manifest import read_either
from offsite.exchange.offer import Offer
from offsite.owner.offering import make_offer
from offsite.owner.plugging import plug
from offsite.publish.card import add_card, make_card
from offsite.publish.hub import pull, push
from offsite.scores.scores import Scores
from offsite.tasks.text.causal import CausalText
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import tune
from tests.support.hub import Hub, serving
from tests.support.models import language_model

SCORES = Scores("accuracy", True, emulator_tuned=0.61, plug_in=0.8)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving() as found:
        yield found


@pytest.fixture
def offered(tokenizer: Any, tmp_path: Path) -> Any:
    model = language_model("llama")
    offer, record = make_offer(model, recipe=[Drop(keep=1)], processor=tokenizer, name="tiny-7b")
    offer.save(tmp_path / "offer")
    return model, record


def test_a_card_is_part_of_the_manifest_and_readable_by_the_hub(
    offered: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "offer"
    add_card(folder, licence="apache-2.0", base_model="org/tiny-7b", scores=SCORES, dataset="SST-2")
    loaded = Offer.load(folder)
    assert "README.md" in loaded.manifest.files
    card: Any = ModelCard((folder / "README.md").read_text())
    assert card.data.license == "apache-2.0" and card.data.base_model == "org/tiny-7b"
    assert card.data.pipeline_tag == "text-generation" and "offer" in card.data.tags
    results = {r.metric_name: (r.metric_value, r.dataset_name) for r in card.data.eval_results}
    assert results == {"plug-in": (0.8, "SST-2"), "emulator fine-tuned": (0.61, "SST-2")}
    assert "offsite tune offer --data data.jsonl --out delta/" in card.text
    assert "a bound on what an emulator can be trained to do" in " ".join(card.text.split())
    assert str(tmp_path) not in card.content and "drop" not in card.content.lower()
    add_card(folder, licence="mit")
    again: Any = ModelCard((folder / "README.md").read_text())
    assert again.data.license == "mit" and again.data.eval_results is None
    Offer.load(folder)


def test_a_card_says_only_what_was_given(offered: Any, tmp_path: Path) -> None:
    manifest = read_either(tmp_path / "offer")
    text = make_card(manifest, licence="other", notes="## More\n\nFree words.")
    assert "base_model" not in text and "Scores" not in text and text.endswith("Free words.\n")
    for word in ("private", "safe "):
        assert word not in text.lower()
    with pytest.raises(OffsiteError, match="not a licence identifier"):
        make_card(manifest, licence="Apache 2")
    with pytest.raises(OffsiteError, match="not a hub name"):
        make_card(manifest, licence="mit", base_model="../etc/passwd")


def test_an_exchange_over_the_hub(offered: Any, tmp_path: Path, text_file: Path, hub: Hub) -> None:
    model, record = offered
    address: dict[str, Any] = {"endpoint": hub.address, "token": "t"}
    add_card(tmp_path / "offer", licence="mit")
    assert push(tmp_path / "offer", "owner/tiny-offer", **address).startswith(hub.address)
    assert hub.visibility["owner/tiny-offer"].get("private", True) is not False
    manifest = pull("owner/tiny-offer", tmp_path / "pulled", **address)
    assert manifest == Offer.load(tmp_path / "pulled").manifest
    assert not (tmp_path / "pulled" / ".gitattributes").exists()
    delta = tune(
        Offer.load(tmp_path / "pulled"), text_file, LoRA(rank=2), task=CausalText(32),
        options=TrainOptions(steps=2, batch_size=2),
    )  # fmt: skip
    delta.save(tmp_path / "delta")
    add_card(tmp_path / "delta", licence="mit", scores=SCORES)
    push(tmp_path / "delta", "tuner/tiny-delta", **address)
    back = pull("tuner/tiny-delta", tmp_path / "back", **address)
    assert back.kind == "delta" and back.id == delta.manifest.id
    plug(model, Delta.load(tmp_path / "back"), record)


def test_a_second_push_leaves_nothing_of_the_first(offered: Any, tmp_path: Path, hub: Hub) -> None:
    address: dict[str, Any] = {"endpoint": hub.address, "token": "t"}
    hub.repos["o/r"] = {"stale.bin": b"old", ".gitattributes": b""}
    push(tmp_path / "offer", "o/r", **address)
    assert "stale.bin" not in hub.repos["o/r"]


def test_what_the_hub_changed_is_refused(offered: Any, tmp_path: Path, hub: Hub) -> None:
    address: dict[str, Any] = {"endpoint": hub.address, "token": "t"}
    push(tmp_path / "offer", "o/r", **address)
    files = hub.repos["o/r"]
    files["extra.bin"] = b"x" * 1000
    pull("o/r", tmp_path / "one", **address)
    assert "extra.bin" not in hub.fetched
    weights = next(name for name in files if name.endswith(".safetensors"))
    files[weights] = files[weights][:-1] + b"\x01"
    with pytest.raises(OffsiteError, match=r"SHA-256|was changed"):
        pull("o/r", tmp_path / "two", **address)
    files["manifest.json"] = b'{"kind": "offer", "files": {"../../evil": {}}}'
    with pytest.raises(OffsiteError, match="names a file"):
        pull("o/r", tmp_path / "two", **address)
    assert not (tmp_path / "two").exists()
    del files["manifest.json"]
    with pytest.raises(OffsiteError, match="neither an offer nor a delta"):
        pull("o/r", tmp_path / "two", **address)


def test_a_hub_that_refuses_is_quoted_by_its_number(tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(OffsiteError, match=r"refused 'o/none' \(404\)"):
        pull("o/none", tmp_path / "x", endpoint=hub.address, token="t")
    with pytest.raises(OffsiteError, match="not a hub name"):
        pull("a/b/c", tmp_path / "x", endpoint=hub.address, token="t")
    with pytest.raises(OffsiteError, match="could not be reached"):
        pull("o/r", tmp_path / "x", endpoint="http://127.0.0.1:9", token="t")
    assert not (tmp_path / "x").exists()
