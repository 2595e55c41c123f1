"""peft adapters trained on an offer by other means: what is taken plugs in, the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from offsite.compress.drop import Drop
from offsite.deltas import parse_method
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta
from offsite.exchange.offer import Offer
from offsite.model.blocks import freeze
from offsite.model.heads import attach_head
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.owner.plugging import merge_delta
from offsite.tasks.image.classification import ImageClassification
from offsite.tuner.importing import import_peft
from offsite.tuner.preparing import private_copy
from tests.support.models import classifier, inputs_for, language_model, output_of
from tests.support.pictures import logits

LEAVES = ["q_proj", "down_proj"]


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Offer]:
    """A model, its record, and its offer as a tuner loads it."""
    model = language_model("llama")
    offer, record = make_offer(model, adapter=ends(1, 1), recipe=[Drop(keep=2)])
    folder = tmp_path_factory.mktemp("offer") / "offer"
    offer.save(folder)
    return model, record, Offer.load(folder)


def train_elsewhere(offer: Offer, folder: Path, convert: bool = False, **options: Any) -> Any:
    """A few steps of plain peft on the offer, saved as peft saves; returns the trained model."""
    config = {"r": 4, "target_modules": LEAVES, "layers_to_transform": list(offer.manifest.adapter)}
    model = private_copy(offer)
    freeze(model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{**config, **options}))
    first = None
    if convert:
        first = folder.with_name("first")
        wrapped.peft_config["default"].init_lora_weights = True  # the next save is no conversion
        wrapped.save_pretrained(first)
        wrapped.peft_config["default"].init_lora_weights = options["init_lora_weights"]
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.5)
    batch = inputs_for(model)
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
    extra = {"path_initial_model_for_weight_conversion": str(first)} if convert else {}
    wrapped.save_pretrained(folder, **extra)
    return wrapped.eval()


# peft says that PiSSA changes the base weights even while it converts such an adapter
@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights:UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {"use_dora": True},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": False},
        {"init_lora_weights": "pissa", "convert": True},
    ],
    ids=["plain", "rslora", "dora", "gaussian", "orthogonal", "random", "pissa-converted"],
)
def test_what_was_trained_elsewhere_plugs_in(
    offered: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    model, record, offer = offered
    trained = train_elsewhere(offer, tmp_path / "peft", **options)
    delta = import_peft(offer, tmp_path / "peft")
    delta.save(tmp_path / "delta")
    method = parse_method(delta.manifest.method)
    through = method.attach(private_copy(offer), offer.manifest.adapter)
    through.load(delta.values())
    batch = inputs_for(model)
    assert torch.allclose(output_of(through.model, batch), output_of(trained, batch), atol=2e-5)
    before = output_of(model, batch)
    plugged = merge_delta(model, delta, record)
    assert not torch.allclose(output_of(plugged, batch), before, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"bias": "lora_only"}, "bias"),
        ({"layers_to_transform": [0, 1]}, "outside the offer's adapter blocks"),
    ],
)
def test_what_a_delta_cannot_carry_is_refused(
    offered: Any, tmp_path: Path, options: dict[str, Any], word: str
) -> None:
    train_elsewhere(offered[2], tmp_path / "peft", **options)
    with pytest.raises(OffsiteError, match=word):
        import_peft(offered[2], tmp_path / "peft")


@pytest.mark.parametrize("key", ["alora_invocation_tokens", "arrow_config", "of_tomorrow"])
def test_options_unknown_here_are_not_passed_over(offered: Any, tmp_path: Path, key: str) -> None:
    train_elsewhere(offered[2], tmp_path / "peft")
    path = tmp_path / "peft" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, key: [1, 2]}))
    with pytest.raises(OffsiteError, match=key):
        import_peft(offered[2], tmp_path / "peft")


def test_notes_of_another_tool_in_the_weights_are_passed_over(offered: Any, tmp_path: Path) -> None:
    train_elsewhere(offered[2], tmp_path / "peft")
    file = tmp_path / "peft" / "adapter_model.safetensors"
    save_file(load_file(file), file, {"format": "pt", "trained_by": "another tool"})
    assert import_peft(offered[2], tmp_path / "peft").manifest.parent == offered[2].manifest.id


def picture_adapter(offer: Offer, folder: Path, labels: int) -> Any:
    """A peft adapter of an image model with a classifier head saved whole."""
    model = private_copy(offer)
    attach_head(model, [f"LABEL_{index}" for index in range(labels)])
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], layers_to_transform=list(offer.manifest.adapter),
        modules_to_save=["classifier"], init_lora_weights=False,
    )  # fmt: skip
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


def test_a_classifier_head_goes_along(tmp_path: Path) -> None:
    model = classifier("vit")
    task = ImageClassification()
    offer, record = make_offer(model, adapter=ends(1, 1), recipe=[Drop(keep=4)], task=task)
    trained = picture_adapter(offer, tmp_path / "peft", 3)
    delta = import_peft(offer, tmp_path / "peft")
    assert delta.manifest.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    delta.save(tmp_path / "delta")
    plugged = merge_delta(model, Delta.load(tmp_path / "delta"), record)
    torch.testing.assert_close(logits(plugged), logits(trained), atol=1e-5, rtol=1e-5)
    picture_adapter(offer, tmp_path / "other", 5)
    with pytest.raises(OffsiteError, match=r"which has 3 classes, and peft saves no names"):
        import_peft(offer, tmp_path / "other")
