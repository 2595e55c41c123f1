"""Run by torchrun: print what a process holds of a model's frozen blocks, spread or whole.

The first process prints a list of JSON objects: ``held`` and ``all`` count the values of frozen
blocks, and ``same`` says whether loss and gradients are those of the whole model.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch.distributed.tensor import DTensor

import offsite as ot
from offsite.deltas import LoRA
from offsite.model.blocks import get_blocks
from offsite.tasks.text.causal import CausalText
from offsite.training.precision import in_precision
from offsite.training.processes import main_process
from offsite.training.sharding import shard_root
from offsite.training.tunable import Tunable
from tests.support.models import language_model


def main() -> None:
    """Compare a spread model with a whole one; the middle is in plain and in packed weights."""
    found = [compare([]), compare([ot.Quantise(bits=4, group=16)])]
    if main_process():
        print(json.dumps(found))
    torch.distributed.destroy_process_group()


def compare(recipe: list[Any]) -> dict[str, Any]:
    """What a process holds, and whether it computes the same."""
    torch.manual_seed(0)
    model = ot.make_offer(language_model("llama"), adapter=ot.ends(1, 1), recipe=recipe)[0].model
    runner = LoRA(rank=2).attach(model, [0, 5]).model
    before = list(get_blocks(model))
    ids = torch.arange(5, 69).view(4, 16)
    batch = {"input_ids": ids, "labels": ids}
    task = CausalText(max_length=16)

    def look() -> list[torch.Tensor]:
        shard_root(tunable := Tunable(runner, task.loss))
        loss = tunable(**batch)["loss"]
        return [loss.detach(), *torch.autograd.grad(loss, [p for _, p in tunable.trained])]

    whole = look()
    size = sum(t.numel() for i in (1, 2, 3, 4) for t in get_blocks(model)[i].state_dict().values())
    with in_precision(runner, torch.float32, torch.device("cpu"), shard=True):
        found = look()
        frozen = [p for i in (1, 2, 3, 4) for p in get_blocks(model)[i].parameters()]
        own = sum(p.to_local().numel() for p in frozen if isinstance(p, DTensor))
    same = all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, found, strict=True))
    back = all(a is b for a, b in zip(before, get_blocks(model), strict=True))
    return {"held": own, "all": size, "same": same, "back": back}


if __name__ == "__main__":
    main()
