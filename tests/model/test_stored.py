"""One truth about a checkpoint: what transformers loads, or a refusal with file and reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import offsite.model.stored
from offsite.errors import OffsiteError
from offsite.model.checkpoint import Checkpoint
from offsite.model.stored import model_fingerprint
from tests.support.models import language_model

Change = Callable[[Path, dict[str, torch.Tensor]], object]
FILE = "model.safetensors"


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / FILE, metadata={"format": "pt"})


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def head(folder: Path, tensors: dict[str, torch.Tensor], *, own: bool) -> None:
    edit(folder, tie_word_embeddings=True)
    first = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = torch.randn_like(first) if own else first.clone()
    write(folder, tensors)


def stale_index(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    model = language_model("llama", seed=9)
    model.save_pretrained(folder / "old", max_shard_size="10KB")
    for file in (folder / "old").glob("model*"):
        shutil.move(file, folder / file.name)
    shutil.rmtree(folder / "old")


LOADS: dict[str, Change] = {
    "as saved": lambda folder, tensors: None,
    "float16 in the config": lambda folder, tensors: edit(folder, dtype="float16"),
    "no dtype in the config": lambda folder, tensors: edit(folder, dtype=None),
    "norms in another dtype": lambda folder, tensors: write(
        folder, {k: v.bfloat16() if "norm" not in k else v for k, v in tensors.items()}
    ),
    "tied, with a head of its own": lambda folder, tensors: head(folder, tensors, own=True),
    "tied, and stored twice": lambda folder, tensors: head(folder, tensors, own=False),
    "an index of an older save": stale_index,
    "rotary buffers of an old release": lambda folder, tensors: write(
        folder, tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(4)}
    ),
}


@pytest.mark.parametrize("kind", LOADS)
def test_whole_or_in_part_the_tensors_are_those_transformers_loads(
    kind: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    language_model("llama").save_pretrained(folder)
    LOADS[kind](folder, load_file(folder / FILE))
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    checkpoint = Checkpoint(str(folder))
    whole, part = checkpoint.load(), checkpoint.load(keep=(0, 1, 4))
    assert checkpoint.fingerprint == model_fingerprint(whole)
    assert whole.state_dict().keys() == reference.keys()
    for name, tensor in whole.state_dict().items():
        assert tensor.dtype == reference[name].dtype and torch.equal(tensor, reference[name]), name
    for name, tensor in part.state_dict().items():
        source = name.replace("layers.2.", "layers.4.")
        assert tensor.dtype == reference[source].dtype
        assert torch.equal(tensor, reference[source]), name
    tied = (
        reference["lm_head.weight"].data_ptr() == reference["model.embed_tokens.weight"].data_ptr()
    )
    assert whole.config.tie_word_embeddings == part.config.tie_word_embeddings == tied


def float8(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(1, 1)
    write(folder, tensors)


def packed(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("q_proj.weight")]:
        tensors[name.replace(".weight", ".qweight")] = torch.ones(2, 16, dtype=torch.int32)
        del tensors[name]
    write(folder, tensors)


def missing_shard(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    (folder / FILE).unlink()
    language_model("llama").save_pretrained(folder, max_shard_size="10KB")
    next(folder.glob("model-00002-of-*.safetensors")).unlink()


def other_file(name: str) -> Change:
    def change(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        (folder / FILE).rename(folder / name)

    return change


REFUSED: dict[str, tuple[Change, str]] = {
    "declared quantisation": (
        lambda folder, tensors: edit(folder, quantization_config={"quant_method": "awq"}),
        r"quantised \(awq\)",
    ),
    "float8 with scales": (float8, "float8"),
    "packed integers": (packed, "quantised .stored as I32"),
    "a shard is missing": (missing_shard, r"model-00002-of-\d+.safetensors' is missing"),
    "GGUF": (other_file("model.gguf"), "model.gguf' is in GGUF"),
    "bin": (other_file("pytorch_model.bin"), "convert it to safetensors"),
    "a pointer of git": (
        lambda folder, _: (folder / FILE).write_text(
            "version https://git-lfs.github.com/spec/v1\n"
        ),
        "Git LFS pointer",
    ),
    "GGUF under another name": (
        lambda folder, _: (folder / FILE).write_bytes(b"GGUF\3\0\0\0" + bytes(99)),
        "is in GGUF under another name",
    ),
    "a pickle under another name": (
        lambda folder, _: torch.save({}, folder / FILE),
        "zip archive, as PyTorch writes its own format",
    ),
    "a page that asks to sign in": (
        lambda folder, _: (folder / FILE).write_text("<!DOCTYPE html>" + " " * 99),
        "is a web page and not the weights",
    ),
    "a variant": (
        other_file("model.fp16.safetensors"),
        "holds 'model.fp16.safetensors', but transformers reads model.safetensors",
    ),
    "shards without their index": (
        other_file("model-00001-of-00001.safetensors"),
        "fetch the index of its shards",
    ),
    "an index of bin without bins": (
        lambda folder, _: (folder / FILE).rename(folder / "pytorch_model.bin.index.json"),
        "names weights in PyTorch's .bin format, which are not there",
    ),
    "quantised in four bits": (
        lambda folder, _: edit(folder, quantization_config={"load_in_4bit": True}),
        r"quantised \(bitsandbytes\), as its config.json says",
    ),
    "quantised in no way": (
        lambda folder, _: edit(folder, quantization_config={}),
        "of an unnamed kind.*, as its config.json says",
    ),
    "float8 as the dtype": (
        lambda folder, _: edit(folder, dtype="float8_e4m3fn"),
        "names the dtype 'float8_e4m3fn', which no model is loaded in",
    ),
    "scales beside weights": (
        lambda folder, t: write(
            folder, t | {"model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}
        ),
        "up_proj.weight_scale', as quantised weights have",
    ),
    "names of a compiled model": (
        lambda folder, t: write(folder, {f"_orig_mod.{k}": v for k, v in t.items()}),
        "take '_orig_mod.' off the names of its tensors",
    ),
    "half a file": (
        lambda folder, _: (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-99]),
        "model.safetensors' is not a complete",
    ),
    "a tensor is missing": (
        lambda folder, t: write(folder, {k: v for k, v in t.items() if "3.mlp.up" not in k}),
        r"lack 'model.layers.3.mlp.up_proj.weight' \(1 tensors",
    ),
    "a tensor too many": (
        lambda folder, t: write(folder, t | {"v_head.weight": torch.ones(3)}),
        "model.safetensors' holds 'v_head.weight'",
    ),
    "more blocks than said": (
        lambda folder, _: edit(folder, num_hidden_layers=4),
        "config.json says 4 blocks",
    ),
    "another shape": (
        lambda folder, _: edit(folder, vocab_size=299),
        r"shape \(300, 16\), but a LlamaForCausalLM .* needs \(299, 16\)",
    ),
    "an adapter beside it": (
        lambda folder, _: (folder / "adapter_config.json").write_text("{}"),
        "merge the adapter first",
    ),
    "no model type": (lambda folder, _: edit(folder, model_type=None), "no model_type"),
    "unknown type": (lambda folder, _: edit(folder, model_type="sesame"), "'sesame' is not one"),
    "a value out of range": (
        lambda folder, _: edit(folder, num_attention_heads="two"),
        "config.json is not valid for 'llama'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused_by_file_and_reason(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    language_model("llama").save_pretrained(folder)
    change, message = REFUSED[kind]
    change(folder, load_file(folder / FILE))
    with pytest.raises(OffsiteError, match=message):
        _ = Checkpoint(str(folder)).stored
    with pytest.raises(OffsiteError, match=message):
        Checkpoint(str(folder)).load()


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


def test_a_model_of_nan_is_refused_before_anything_is_shipped(tmp_path: Path) -> None:
    language_model("llama").save_pretrained(tmp_path / "m")
    tensors = {key: value.clone() for key, value in load_file(tmp_path / "m" / FILE).items()}
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = torch.nan
    write(tmp_path / "m", tensors)
    with pytest.raises(OffsiteError, match=r"layers.2.mlp.up_proj.weight' .* holds NaN"):
        _ = Checkpoint(str(tmp_path / "m")).fingerprint
