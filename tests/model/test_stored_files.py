"""What a checkpoint holds beside its weights, its experts, and how often its files are opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

import offsite.model.stored
from offsite.errors import OffsiteError
from offsite.model.checkpoint import Checkpoint
from offsite.model.stored import model_fingerprint
from tests.model.test_stored import FILE, edit, write
from tests.support.models import language_model


@pytest.mark.parametrize("name", ["GPT2", "GPTNeo", "GPTJ"])
def test_causal_masks_of_early_versions_are_passed_over(name: str, tmp_path: Path) -> None:
    """As gpt-neo-125m and others lie on the hub; transformers passes over them too."""
    more: dict[str, Any] = (
        {"attention_types": [[["global", "local"], 1]]} if name == "GPTNeo" else {}
    )
    more |= {"rotary_dim": 4} if name == "GPTJ" else {}
    build = getattr(transformers, f"{name}Config")
    config = build(
        vocab_size=60, hidden_size=16, num_layers=2, n_layer=2, num_heads=2, n_head=2, **more
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "m")
    tensors = load_file(tmp_path / "m" / FILE)
    inner = "attn.attention" if name == "GPTNeo" else "attn"
    for index in range(2):
        tensors[f"transformer.h.{index}.{inner}.bias"] = torch.ones(1, 1, 8, 8).tril()
        tensors[f"transformer.h.{index}.{inner}.masked_bias"] = torch.tensor(-1e9)
    write(tmp_path / "m", tensors)
    checkpoint = Checkpoint(str(tmp_path / "m"))
    assert checkpoint.fingerprint == model_fingerprint(model)
    assert model_fingerprint(checkpoint.load()) == model_fingerprint(model)


def test_blocks_for_multi_token_prediction_are_passed_over(tmp_path: Path) -> None:
    """DeepSeek-V3 and GLM-4.5 store them behind the last block; the language model has none."""
    model = language_model("llama")
    model.config.num_nextn_predict_layers = 1
    model.save_pretrained(tmp_path / "m")
    tensors, total = load_file(tmp_path / "m" / FILE), model.config.num_hidden_layers
    tensors |= {
        key.replace(f".{total - 1}.", f".{total}."): value.clone()
        for key, value in tensors.items()
        if f"layers.{total - 1}." in key
    }
    write(tmp_path / "m", tensors)
    assert Checkpoint(str(tmp_path / "m")).fingerprint == model_fingerprint(model)
    edit(tmp_path / "m", num_nextn_predict_layers=None)
    with pytest.raises(OffsiteError, match=r"config.json says \d+ blocks"):
        _ = Checkpoint(str(tmp_path / "m")).stored


def test_experts_load_in_part_as_transformers_makes_them(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(
        vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=5,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=3,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model")
    checkpoint = Checkpoint(str(tmp_path / "model"))
    part = checkpoint.load(keep=(0, 3))
    reference = model.state_dict()
    for name, tensor in part.state_dict().items():
        assert torch.equal(tensor, reference[name.replace("layers.1.", "layers.3.")]), name
    assert checkpoint.fingerprint == model_fingerprint(model)


def test_every_file_is_opened_once_and_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading tensor by tensor opens a shard once, and closes it before the next one."""
    model = language_model("llama")
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    stored = Checkpoint(str(tmp_path / "m")).stored
    events: list[tuple[str, str]] = []

    @contextmanager
    def noted(file: Path, **options: Any) -> Iterator[Any]:
        events.append(("open", file.name))
        with safe_open(file, **options) as opened:
            yield opened
        events.append(("close", file.name))

    monkeypatch.setattr(offsite.model.stored, "safe_open", noted)
    assert stored.fingerprint() == model_fingerprint(model)
    files = sorted(file.name for file in (tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 2 and sorted(name for kind, name in events if kind == "open") == files
    assert [kind for kind, _ in events] == ["open", "close"] * len(files)


def test_a_whole_load_opens_every_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a file reads its header, so once a tensor is quadratic in the number of experts."""
    language_model("llama").save_pretrained(tmp_path / "m", max_shard_size="20KB")
    stored = Checkpoint(str(tmp_path / "m")).stored
    opened: list[str] = []

    def noted(file: Path, **options: Any) -> Any:
        opened.append(file.name)
        return safe_open(file, **options)

    monkeypatch.setattr(offsite.model.stored, "safe_open", noted)
    assert stored.source()
    assert sorted(opened) == sorted(file.name for file in (tmp_path / "m").glob("*.safetensors"))


def test_experts_in_several_shards_load_as_transformers_makes_them(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4,
        max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "m", max_shard_size="8KB")
    checkpoint = Checkpoint(str(tmp_path / "m"))
    stored = checkpoint.stored
    split = [k for k in stored.names.values() if len({stored.stored[key].file for key in k}) > 1]
    assert split  # the experts of a block lie in several files
    full = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "m")
    part = checkpoint.load(keep=[0, 2])
    for index, position in enumerate((0, 2)):
        for name, tensor in full.model.layers[position].named_parameters():
            assert torch.equal(part.model.layers[index].get_parameter(name), tensor), name
