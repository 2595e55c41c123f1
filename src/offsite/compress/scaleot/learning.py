"""Dynamic LayerReplace of ScaleOT (arXiv 2412.09812): learn importance scores and harmonizers.

The authors published no code. What follows them: a score per block, probabilities ``sigmoid(s)``,
groups of four consecutive blocks of which those at or above the group's median of ``u p`` stay,
harmonizers for the others, alternating steps (language-model loss by AdamW 1e-4 on the
harmonizers; three sampled configurations and the rule ``s += eta r p (1 - p)`` on the scores),
reward ``exp(-L)`` minus its mean. Ours: the median of four is the mean of the two in the middle,
so two stay; a last group of fewer than four is treated alike; validation batches are of every
tenth row of the data; rewards are divided by their mean, so that ``eta`` means the same for every
model; and harmonizers may also be taught to give the hidden states of the blocks they stand for
(``kd_weight``). Taught by the language-model loss alone they may repair a model in ways that its
own blocks do not share, and an adapter that is tuned to the repair loses by it when plugged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import torch
from torch import nn
from torch.utils.data import Subset

from offsite.compress.scaleot.learned import Learned, State, read_state, write_state
from offsite.compress.scaleot.training import Training
from offsite.compress.step import Context
from offsite.errors import OffsiteError
from offsite.model.blocks import assemble, block_config, get_blocks
from offsite.model.layers import Harmonizer
from offsite.model.replay import Call, observe, record_calls, relative_error
from offsite.model.stored import model_fingerprint
from offsite.tasks.source import data_identity
from offsite.training.devices import fork_generators
from offsite.training.identity import Identity
from offsite.training.progress import track
from offsite.training.resume import same_run

GROUP, SAMPLES, HOLD_OUT = 4, 3, 10


def learn(context: Context, training: Training = Training()) -> Learned:  # noqa: B008 (frozen)
    """Train scores and harmonizers for every block of a model, which itself stays as it is.

    Every random choice of step t is seeded by (seed, t), so a resumed run ends bit-equal on a CPU.

    Args:
        context: model, calibration data, and the folder to resume from, if any.
        training: how long and how.

    Raises:
        OffsiteError: no data, fewer than two rows of it, or nothing to resume.
    """
    learning, validation = hold_out(context)
    state = start(context, training)
    shell = Shell(context.model, state.harmonizers)
    model = model_fingerprint(context.model)

    def run() -> Identity:
        options = {k: v for k, v in asdict(training).items() if k not in ("steps", "save_every")}
        assert context.task is not None
        return Identity.of(
            **options,
            seed=context.seed,
            model=model,
            dtype=str(next(context.model.parameters()).dtype),
            task=context.task.identity(),
            data=data_identity(context.data),
        )

    with same_run(context.work, run, context.resume):
        if context.resume:
            read_state(context, state)
        for step in track(range(state.step, training.steps), "learning importance"):
            seed = context.seed * 1_000_003 + step
            harmonizer_step(shell, state, learning, seed, training)
            score_step(shell, state, validation, seed, training)
            state.step = step + 1
            due = state.step % training.save_every == 0 or state.step == training.steps
            if context.work and due:
                write_state(context.work, state)
    return Learned(
        tuple(state.scores.tolist()),
        state.harmonizers.requires_grad_(False),
        model,
    )


def start(context: Context, training: Training) -> State:
    """Scores of zero, harmonizers that do nothing yet, and their optimiser."""
    model, total = context.model, len(get_blocks(context.model))
    probe = next(context.batches(1, 1))
    tuples: list[bool] = []
    handle = get_blocks(model)[0].register_forward_hook(
        lambda module, args, output: tuples.append(isinstance(output, tuple))
    )
    with torch.no_grad():
        observe(model, probe, [])
    handle.remove()
    with fork_generators(context.seed):
        hidden = block_config(model).hidden_size
        harmonizers = nn.ModuleList(
            Harmonizer(hidden, training.rank, tuples[0]) for _ in range(total)
        ).to(context.device)
    optimiser = torch.optim.AdamW(harmonizers.parameters(), lr=training.lr, weight_decay=0.0)
    return State(0, torch.zeros(total, dtype=torch.float64), harmonizers, optimiser)


class Shell:
    """The model with blocks that can be swapped for harmonizers from one batch to the next."""

    def __init__(self, model: nn.Module, harmonizers: nn.ModuleList) -> None:
        blocks = list(get_blocks(model))
        self.model = assemble(model, blocks, range(len(blocks))).requires_grad_(False)
        self.slots = get_blocks(self.model)
        self.blocks, self.harmonizers = list(self.slots), harmonizers

    def configure(self, kept: Sequence[bool]) -> nn.Module:
        """The model with the blocks ``kept`` and harmonizers for all others."""
        for index, keep in enumerate(kept):
            self.slots[index] = self.blocks[index] if keep else self.harmonizers[index]
        return self.model


def sample(scores: torch.Tensor, generator: torch.Generator) -> list[bool]:
    """Draw which blocks stay: those whose ``u p`` is at or above the median of their group."""
    draws = torch.rand(len(scores), generator=generator, dtype=torch.float64) * scores.sigmoid()
    groups = torch.split(draws, GROUP)
    return [keep for group in groups for keep in (group >= group.quantile(0.5)).tolist()]


def update(scores: torch.Tensor, kept: Sequence[bool], reward: float, eta: float) -> torch.Tensor:
    """``s_i + eta r p_i (1 - p_i)`` for the blocks that were kept, the others unchanged."""
    p = scores.sigmoid()
    return scores + eta * reward * p * (1 - p) * torch.tensor(kept, dtype=scores.dtype)


def rewards(losses: torch.Tensor) -> torch.Tensor:
    """``exp(-L)`` of each configuration, minus the mean and over it; a common loss cancels."""
    values = (losses.min() - losses).exp()
    return values / values.mean() - 1


def harmonizer_step(
    shell: Shell, state: State, context: Context, seed: int, training: Training
) -> None:
    """One AdamW step on the harmonizers of one sampled configuration."""
    assert context.task is not None
    kept = sample(state.scores, torch.Generator().manual_seed(seed))
    if all(kept):
        return
    (batch,) = context.batches(1, training.batch_size, seed)
    replaced = [position for position, keep in enumerate(kept) if not keep]
    with record_calls(shell.configure(kept), replaced) as calls:
        loss = training.lm_weight * context.task.loss(shell.model, batch)
    if training.kd_weight:
        with torch.no_grad():
            targets = observe(context.model, batch, replaced)
        loss = loss + training.kd_weight * state_error(calls, targets)
    state.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    state.optimiser.step()


def state_error(calls: Mapping[int, Call], targets: Mapping[int, Call]) -> torch.Tensor:
    """Mean over blocks of ``mean(((T - S) / rms(T))^2)`` between hidden states after them."""
    errors = [
        relative_error(calls[position].output, target) for position, target in targets.items()
    ]
    return torch.stack(errors).mean()


@torch.no_grad()
def score_step(shell: Shell, state: State, context: Context, seed: int, training: Training) -> None:
    """One policy-gradient update from configurations compared on the same held-out batch."""
    assert context.task is not None
    generator = torch.Generator().manual_seed(seed + 500_009)
    (batch,) = context.batches(1, training.batch_size, seed)
    masks = [sample(state.scores, generator) for _ in range(SAMPLES)]
    losses = [context.task.loss(shell.configure(mask), batch).double().cpu() for mask in masks]
    for mask, reward in zip(masks, rewards(torch.stack(losses)).tolist(), strict=True):
        state.scores = update(state.scores, mask, reward, training.eta)


def hold_out(context: Context) -> tuple[Context, Context]:
    """The context with its data in two parts: to learn from, and every tenth row to compare on."""
    if context.data is None or context.task is None:
        raise OffsiteError("LayerReplace needs data of the owner; give it with --data.")
    total = len(context.data)  # type: ignore[arg-type]
    if total < 2:
        raise OffsiteError("LayerReplace needs at least two rows of data; give more text.")
    held = [*range(HOLD_OUT - 1, total, HOLD_OUT)] or [total - 1]
    rest = sorted(set(range(total)) - set(held))
    return (
        replace(context, data=Subset(context.data, rest)),
        replace(context, data=Subset(context.data, held)),
    )
