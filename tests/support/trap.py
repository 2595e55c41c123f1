"""A hostile offer: neurons that each fire on one watched word, so that a delta tells which it met.

The adapter's first block has no attention and one feed-forward neuron a word. A neuron that never
fired has no gradient, so what tuning changed says which words the private text holds.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from offsite.compress.drop import Drop
from offsite.exchange.offer import Offer
from offsite.model.split import ends
from offsite.owner.offering import make_offer

FILLER = ["<|end|>", "the", "patient", "has", "met", "and", "on", "monday", "."]
WATCHED = [f"word{i}" for i in range(24)]


@dataclass(frozen=True)
class Trap:
    """The hostile offer, and where its neurons are."""

    offer: Offer
    tokenizer: Any

    def scores(self, tensors: dict[str, torch.Tensor]) -> list[float]:
        """For each watched word, how much a LoRA delta changed its neuron."""
        change = next(t for n, t in tensors.items() if "h.0.mlp.c_fc.lora_B" in n)
        return change.float().abs().sum(1)[: len(WATCHED)].tolist()


def word_tokenizer() -> Any:
    """One token a word."""
    words = [*FILLER, *WATCHED]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<|end|>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", bos_token="<|end|>", pad_token="<|end|>",
        unk_token="<|end|>",
    )  # fmt: skip


@torch.no_grad()
def make_trap() -> Trap:
    """A model of four small blocks whose first one is the trap, as an offer."""
    tokenizer, width = word_tokenizer(), 48
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=width, n_layer=4, n_head=2, n_positions=32, n_inner=96,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    basis = torch.linalg.qr(torch.randn(width, width))[0]
    model.transformer.wte.weight.copy_(basis[: len(tokenizer)])
    model.transformer.wpe.weight.zero_()
    first = model.transformer.h[0]
    first.attn.c_proj.weight.zero_()
    first.attn.c_proj.bias.zero_()
    states = torch.nn.functional.layer_norm(model.transformer.wte.weight, (width,))
    first.mlp.c_fc.weight.zero_()
    first.mlp.c_fc.bias.fill_(-40.0)
    for place, word in enumerate(WATCHED):
        state = states[tokenizer.convert_tokens_to_ids(word)]
        first.mlp.c_fc.weight[:, place] = 41 * state / state.square().sum()
    offer, _ = make_offer(
        model, adapter=ends(1, 1), recipe=[Drop(keep=1)], processor=tokenizer, device="cpu"
    )
    return Trap(offer, tokenizer)


def private_lines(path: Path, count: int = 200) -> set[str]:
    """Write sentences with half of the watched words; returns those words."""
    draw = random.Random(7)
    secret = sorted(draw.sample(WATCHED, len(WATCHED) // 2))
    lines = [
        f"the patient {draw.choice(secret)} has met the patient {draw.choice(secret)} on monday ."
        for _ in range(count)
    ]
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return set(secret)


def area_under_curve(positive: list[float], negative: list[float]) -> float:
    """The chance that a positive scores above a negative, by counting every pair."""
    pairs = [(a > b) + 0.5 * (a == b) for a in positive for b in negative]
    return sum(pairs) / len(pairs)
