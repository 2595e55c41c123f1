"""Learn the prompt decoder of a model on several public tasks (IPT; Qin et al., arXiv 2110.07867).

The owner's step, on the full model and before any offer; what comes out is shipped in offers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offsite.deltas.addition.prompting import PromptModule, add_prompt, check_takes_prompt
from offsite.errors import require
from offsite.exchange.prompt_decoder import TENSORS, decode
from offsite.model.blocks import freeze
from offsite.model.checkpoint import load_model, load_processor
from offsite.model.stored import model_fingerprint
from offsite.tasks.data import identity_of, rows_of
from offsite.tasks.task import Task
from offsite.training.devices import pick_device
from offsite.training.identity import Identity, processor_identity
from offsite.training.options import TrainOptions
from offsite.training.resume import same_run
from offsite.training.train import train, with_lr

LR = 1e-2


class TaskPrompts(PromptModule):
    """One intrinsic vector for each public task and the decoder they share, all trainable."""

    def __init__(self, tasks: int, dim: int, hidden: int, start: torch.Tensor) -> None:
        super().__init__()
        like, scale = start.float(), start.float().std()
        length, width = start.shape
        self.z = nn.Parameter(torch.randn(tasks, dim, device=like.device))
        self.inner = nn.Parameter(torch.randn(hidden, dim, device=like.device) * dim**-0.5)
        self.inner_bias = nn.Parameter(torch.zeros(hidden, device=like.device))
        outer = torch.randn(length, width, hidden, device=like.device)
        self.outer = nn.Parameter(outer * scale * hidden**-0.5)
        self.outer_bias = nn.Parameter(like.clone())
        self.chosen = torch.zeros(1, dtype=torch.long)

    def forward(self) -> torch.Tensor:
        z = self.z[self.chosen.to(self.z.device)]
        return decode(z, **{name: self.get_parameter(name) for name in TENSORS})


def learn_decoder(
    model: str | Path | nn.Module,
    tasks: Sequence[tuple[Task, Any]],
    *,
    length: int = 16,
    dim: int = 250,
    hidden: int = 64,
    options: TrainOptions | None = None,
    processor: Any = None,
    device: str | torch.device | None = None,
    work: Path | None = None,
    resume: bool = False,
) -> dict[str, torch.Tensor]:
    """Learn a prompt decoder: a short vector in, a prompt for ``model`` out.

    Every task gets a vector of ``dim`` values. One network decodes each into a prompt of ``length``
    vectors. Vectors and network are trained together on the tasks' losses, with equal shares of the
    tasks. The paper first tunes a prompt for each task, then fits an auto-encoder to the prompts
    and the loss; ours needs neither.

    Args:
        model: folder, hub name or model in memory, which is not changed.
        tasks: two or more, each with its public data: a path, or rows the task made.
        hidden: width of the decoder's one hidden layer.
        options: as for tuning; the learning rate is 1e-2 unless given.
        work, resume: see :func:`offsite.training.train.train`.

    Returns:
        The decoder's tensors, float32 on the CPU; give them to ``make_offer`` and ``plug`` as
        ``side={"prompt_decoder": tensors}``.

    Raises:
        OffsiteError: fewer than two tasks, unusable data, or no language model.
    """
    require(len(tasks) >= 2, f"A decoder is learnt on two or more tasks, not {len(tasks)}.")
    sizes = f"length={length}, dim={dim}, hidden={hidden}"
    require(min(length, dim, hidden) >= 1, f"A prompt decoder cannot have {sizes}; use 1 or more.")
    first, options = tasks[0][0], with_lr(options or TrainOptions(), LR)
    if isinstance(model, (str, Path)):
        processor = processor or load_processor(model, first.name)
        runner: nn.Module = load_model(model, first.auto_class, dtype=torch.float32)
    else:
        runner = copy.deepcopy(model)
    check_takes_prompt(runner)
    rows = balanced([rows_of(task, data, processor, runner, train=True) for task, data in tasks])
    fingerprint = model_fingerprint(runner)

    def run() -> Identity:
        given = [{"task": task.identity(), "data": identity_of(data)} for task, data in tasks]
        return Identity.of(
            model=fingerprint, length=length, dim=dim, hidden=hidden, tasks=given,
            processor=processor_identity(processor), options=options.identity(),
        )  # fmt: skip

    target = pick_device(device)
    freeze(runner.to(target))
    torch.manual_seed(options.seed)
    prompts = TaskPrompts(len(tasks), dim, hidden, random_prompt(runner, length, target))
    remove = add_prompt(runner, prompts)

    def collate(batch: Sequence[tuple[int, Any]]) -> dict[str, torch.Tensor]:
        chosen = torch.tensor([index for index, _ in batch])
        return {"chosen": chosen, **first.collate([row for _, row in batch])}

    def loss(
        model: nn.Module, batch: Mapping[str, Any], items: torch.Tensor | None = None
    ) -> torch.Tensor:
        prompts.chosen = batch["chosen"]
        rest = {key: value for key, value in batch.items() if key != "chosen"}
        return first.loss(model, rest, items)

    try:
        with same_run(work, run, resume):
            train(
                runner, rows, loss=loss, collate=collate, options=options, device=target,
                work=work, resume=resume, text="learning a prompt decoder",
            )  # fmt: skip
    finally:
        remove()
    return {name: prompts.get_parameter(name).detach().float().cpu() for name in TENSORS}


def random_prompt(model: Any, length: int, device: torch.device) -> torch.Tensor:
    """Embeddings of random tokens, ``(length, hidden size)``, for prompts to start from."""
    table = model.get_input_embeddings()
    tokens = torch.randint(0, len(table.weight), (length,)).to(device)
    start: torch.Tensor = table(tokens).detach()
    return start


def balanced(tasks: Sequence[Sequence[Mapping[str, torch.Tensor]]]) -> Any:
    """``(task, row)`` of all tasks, the shorter ones repeated until all are as long.

    Where one task packs several examples into a row, rows of the others say their positions too.
    """
    packed = any("position_ids" in rows[0] for rows in tasks)
    return [
        (index, {"position_ids": torch.arange(len(row["input_ids"])), **row} if packed else row)
        for place in range(max(len(rows) for rows in tasks))
        for index, rows in enumerate(tasks)
        for row in (rows[place % len(rows)],)
    ]
