"""Sample text from a language model, for an owner without suitable text."""

from __future__ import annotations

from typing import Any

import torch

from offsite.training.devices import fork_generators
from offsite.training.progress import track

SAMPLE = "sample"
PROMPT = 16  # tokens that a row takes over from a row of a file
AT_ONCE = 256  # rows drawn together


def sampled_rows(
    model: Any,
    processor: Any,
    given: Any,
    *,
    count: int,
    length: int,
    seed: int,
) -> list[dict[str, torch.Tensor]]:
    """``count`` rows of ``length`` tokens, drawn at temperature 1 where the model is.

    Args:
        given: rows whose first 16 tokens begin those that are drawn; None begins each with one
            random token of the tokenizer (LLM-QAT, arXiv 2305.17888).
    """
    generator = torch.Generator().manual_seed(seed)
    if given is None:
        size = min(len(processor), model.config.vocab_size)
        starts = torch.randint(size, (count, 1), generator=generator)
    else:
        rows = [given[i % len(given)]["input_ids"] for i in range(min(count, len(given)))]
        short = min(PROMPT, *(len(row) for row in rows), length - 1)
        starts = torch.stack([rows[i % len(rows)][:short] for i in range(count)])
    device = next(model.parameters()).device
    with fork_generators(seed, device):
        parts = [
            drawn(model, part.to(device), length).cpu()
            for part in track(torch.split(starts, AT_ONCE), "sampling")
        ]
    return [{"input_ids": row, "labels": row} for row in torch.cat(parts)]


def drawn(model: Any, starts: torch.Tensor, length: int) -> torch.Tensor:
    """Rows (rows, length) that go on from ``starts`` (rows, tokens), without an end in them."""
    count = length - starts.shape[1]
    rows: torch.Tensor = model.generate(
        starts, attention_mask=torch.ones_like(starts), pad_token_id=0, do_sample=True,
        temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
        min_new_tokens=count, max_new_tokens=count,
    )  # fmt: skip
    return rows
