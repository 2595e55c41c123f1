"""One truth about a checkpoint: what transformers loads, or a refusal with file and reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

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


def test_a_model_of_nan_is_refused_before_anything_is_shipped(tmp_path: Path) -> None:
    language_model("llama").save_pretrained(tmp_path / "m")
    tensors = {key: value.clone() for key, value in load_file(tmp_path / "m" / FILE).items()}
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = torch.nan
    write(tmp_path / "m", tensors)
    with pytest.raises(OffsiteError, match=r"layers.2.mlp.up_proj.weight' .* holds NaN"):
        _ = Checkpoint(str(tmp_path / "m")).fingerprint
