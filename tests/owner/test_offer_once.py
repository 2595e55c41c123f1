"""An offer reads its model once, asks for what it needs first, and gives nothing away unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import offsite as ot
import offsite.model.checkpoint
import offsite.model.stored
from offsite.model.checkpoint import Checkpoint
from tests.support import Run
from tests.support.models import TEXT, language_model


class Counter:
    """Counts the calls of a function that it stands before."""

    def __init__(self, patch: pytest.MonkeyPatch, place: Any, name: str) -> None:
        self.calls, original = 0, getattr(place, name)

        def counted(*args: Any, **options: Any) -> Any:
            self.calls += 1
            return original(*args, **options)

        patch.setattr(place, name, counted)


def test_one_offer_reads_its_model_once(
    run: Run, model_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_folder("llama")
    words = ("offer", model, "--keep", 1, "--record", tmp_path / "r.json", "--out")
    assert run(*words, tmp_path / "first")[0] == 0  # so that the second has a record to compare
    configs: list[Path] = []
    read = transformers.AutoConfig.from_pretrained

    def noted(name: Any, *args: Any, **options: Any) -> Any:
        configs.append(Path(name))
        return read(name, *args, **options)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", noted)
    prints = Counter(monkeypatch, offsite.model.stored, "fingerprint")
    build = transformers.LlamaForCausalLM.__init__
    skeletons = 0

    def counted(self: Any, *args: Any, **options: Any) -> None:
        nonlocal skeletons
        build(self, *args, **options)
        skeletons += next(self.parameters()).is_meta

    monkeypatch.setattr(transformers.LlamaForCausalLM, "__init__", counted)
    status, _, err = run(*words, tmp_path / "second")
    assert status == 0, err
    assert prints.calls == 1
    assert configs.count(model) == 1
    assert len(configs) == 2  # and that of the new folder, whose tokenizer is tried
    assert skeletons == 2  # one is judged, the other is filled and becomes the emulator


def test_a_recipe_without_its_data_is_refused_before_weights_are_read(
    run: Run, model_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(offsite.model.stored.StoredModel, "tensors", refuse)
    monkeypatch.setattr(offsite.model.stored.StoredModel, "source", refuse)
    words = ("--recipe", "crash", "--budget", 0.5, "--out", tmp_path / "offer")
    status, _, err = run("offer", model_folder("llama"), *words)
    assert status == 2 and "'cluster' needs calibration data" in err and "--data" in err
    with pytest.raises(ot.OffsiteError, match="needs calibration data"):
        ot.make_offer(tmp_path / "model-llama", recipe=[ot.Distill(steps=1)])


def test_the_whole_middle_leaves_only_when_asked(
    run: Run, model_folder: Any, tmp_path: Path
) -> None:
    model, out = model_folder("llama"), tmp_path / "offer"
    for words in (("--recipe", "prune"), ("--recipe", "influence"), ("--recipe", "int8")):
        status, _, err = run("offer", model, "--out", out, *words)
        assert status == 2 and "--keep BLOCKS" in err and not out.exists()
    assert run("offer", model, "--out", out, "--whole")[0] == 0
    assert run("offer", model, "--out", tmp_path / "int8", "--recipe", "int8", "--whole")[0] == 0


def test_the_default_ships_half_of_the_middle_and_says_so(
    run: Run, model_folder: Any, tmp_path: Path
) -> None:
    words = ("--adapter", "ends:1,1", "--out", tmp_path / "offer", "--json")
    status, out, err = run("offer", model_folder("llama"), *words)
    assert status == 0 and len(json.loads(out)["middle"]) == 2
    assert "No recipe was chosen" in err and "may end worse than untuned" in err


def test_a_sweep_refuses_importance_learned_on_another_model(
    run: Run, model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    model = model_folder("llama")
    words = ("--learn", tmp_path / "learned", "--learn-steps", 1, "--max-length", 16)
    assert run("importance", model, "--data", text_file, *words)[0] == 0
    language_model("llama", seed=7).save_pretrained(tmp_path / "other")
    told: tuple[object, ...] = ("--data", text_file, "--eval-data", text_file)
    told += ("--out", tmp_path / "sweep")
    told += ("--adapter", "learned:2", "--learned", tmp_path / "learned")
    status, _, err = run("sweep", tmp_path / "other", *told)
    assert status == 2 and "was learned on another model" in err


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_folder_and_a_model_in_memory_give_the_same_offer(
    family: str, model_folder: Any, tokenizer: Any, tmp_path: Path
) -> None:
    folder = model_folder("llama")
    if family == "mixtral":
        language = tiny("mixtral")
        language.save_pretrained(folder)
    own = transformers.GenerationConfig(max_new_tokens=7, do_sample=True, temperature=0.5)
    own.save_pretrained(folder)
    full = transformers.AutoModelForCausalLM.from_pretrained(folder)
    recipe = [ot.Drop(keep=1)]
    for name, model in {"disk": folder, "memory": full, "named": Checkpoint(str(folder))}.items():
        made, _ = ot.make_offer(model, recipe=recipe, processor=tokenizer, name="m")
        made.save(tmp_path / name)
    names = {file.name for file in (tmp_path / "disk").iterdir()}
    for other in ("memory", "named"):
        assert names == {file.name for file in (tmp_path / other).iterdir()}
        for name in names - {"manifest.json"}:
            first, second = tmp_path / "disk" / name, tmp_path / other / name
            assert first.read_bytes() == second.read_bytes(), name


FAMILIES: dict[str, Any] = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 3}),
    "olmoe": ("OlmoeConfig", {"num_experts": 3, "num_experts_per_tok": 2}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8},
    ),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "conv", "full_attention"] * 2}),
    "mamba": ("MambaConfig", {"state_size": 4}),
    "deepseek-v3": (
        "DeepseekV3Config",
        {
            "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
            "first_k_dense_replace": 0, "moe_intermediate_size": 8, "kv_lora_rank": 4,
            "q_lora_rank": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
        },
    ),
}  # fmt: skip


def tiny(family: str, **changes: Any) -> Any:
    """A tiny random model whose blocks are not those of a plain transformer."""
    name, options = FAMILIES[family]
    config = getattr(transformers, name)(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=6,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, **options, **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_dropped_and_an_untouched_delta_plugs_back(
    family: str, run: Run, tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny(family)
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    (tmp_path / "text.txt").write_text(TEXT)
    status, _, err = run("offer", tmp_path / "m", "--out", tmp_path / "o", "--keep", 1)
    assert status == 0, err
    offered = ot.Offer.load(tmp_path / "o").model.state_dict()
    for key, tensor in model.state_dict().items():
        parts = key.split(".")
        if "layers" in parts:
            index = int(parts[parts.index("layers") + 1])
            if index not in (0, 1, 4, 5):
                continue
            parts[parts.index("layers") + 1] = str(index if index < 2 else index - 1)
        assert torch.equal(offered[".".join(parts)], tensor), key
    words = ("--steps", 1, "--lr", 1e-30, "--delta", "full", "--max-length", 16, "--device", "cpu")
    tune = ("tune", tmp_path / "o", "--data", tmp_path / "text.txt", "--out", tmp_path / "d")
    status, _, err = run(*tune, *words)
    assert status == 0, err
    plug = ("plug", tmp_path / "m", tmp_path / "d", "--record", tmp_path / "o.record.json")
    status, _, err = run(*plug, "--out", tmp_path / "t")
    assert status == 0, err
    before, after = (
        load_file(tmp_path / "m/model.safetensors"),
        load_file(tmp_path / "t/model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[key], after[key], rtol=0, atol=1e-20) for key in before)


def test_what_transformers_keeps_in_float32_leaves_in_float32(tmp_path: Path) -> None:
    model = tiny("deepseek-v3", dtype="bfloat16")
    model.save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    exact = {n: torch.rand(t.shape) for n, t in tensors.items() if n.endswith("correction_bias")}
    save_file(tensors | exact, path, metadata={"format": "pt"})
    assert exact
    for recipe in ([ot.Drop(keep=1)], [ot.Share()]):
        made, _ = ot.make_offer(tmp_path / "m", recipe=recipe, name="m")
        state = made.model.state_dict()
        name = "model.layers.0.mlp.gate.e_score_correction_bias"
        assert torch.equal(state[name], exact[name]), recipe
        assert state["lm_head.weight"].dtype == torch.bfloat16
