"""Differentially private training: DP-SGD (Abadi et al., arXiv 1607.00133) with AdamW.

Every step samples the examples independently (Poisson sampling), clips the gradient of each one,
adds normal noise to the sum, and hands that to AdamW. opacus takes the gradients of single examples
and does the accounting. Here we differ from its engine in two points: sampling and noise come from
the operating system's generator, which needs no further package, and the gradients of single
examples are compared with those of single rows before training, so that a method for which they
would be wrong is refused.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from offsite.errors import MissingExtraError, OffsiteError
from offsite.training import secure_noise
from offsite.training.guarantee import Guarantee
from offsite.training.options import TrainOptions
from offsite.training.processes import process_count
from offsite.training.progress import track
from offsite.training.train import History
from offsite.training.tunable import Loss

Collate = Callable[[Sequence[Any]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class PrivacyBudget:
    """How much a run may reveal about any one example.

    Attributes:
        epsilon: smaller reveals less; 1 to 10 is usual.
        delta: the chance that the bound fails; below one over the number of examples.
        clip: largest L2 norm of the gradient of one example's summed loss.
    """

    epsilon: float
    delta: float = 1e-5
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not 0.05 <= self.epsilon <= 100:
            raise OffsiteError(f"An epsilon of {self.epsilon} is not usable; choose 0.05 to 100.")
        if not 1e-15 <= self.delta < 1 or not 0 < self.clip < math.inf:
            raise OffsiteError(
                "A privacy budget needs a delta from 1e-15 to below 1 and a clip above 0."
            )


@dataclass(frozen=True)
class Schedule:
    """How a budget is spent: ``steps`` of rate ``rate`` with noise of ``multiplier`` times clip."""

    steps: int
    rate: float
    multiplier: float
    epsilon: float


def schedule(budget: PrivacyBudget, options: TrainOptions, examples: int) -> Schedule:
    """The smallest noise that keeps a run within its budget.

    Raises:
        OffsiteError: too few examples for the batch or for delta, or options that would spend more
            than is counted.
        MissingExtraError: opacus is not installed.
    """
    batch = options.batch_size * options.accumulate
    if budget.delta >= 1 / max(examples, 1):
        raise OffsiteError(
            f"A delta of {budget.delta:g} is too large for {examples} examples; use one below "
            f"{1 / max(examples, 1):.1g} with --dp-delta, or more examples (a .txt file is one)."
        )
    if batch >= examples:
        raise OffsiteError(
            f"A batch of {batch} holds all {examples} examples; use a smaller --batch-size."
        )
    if options.patience or options.precision not in (None, "float32"):
        raise OffsiteError(
            "--patience and a --precision other than float32 do not work with --dp-epsilon; leave "
            "them out."
        )
    if process_count() > 1:
        raise OffsiteError("Differentially private tuning runs in one process; leave out torchrun.")
    steps = options.steps or max(1, math.ceil(examples * options.epochs / batch))
    rate = batch / examples
    with opacus_quiet():
        from opacus.accountants.utils import get_noise_multiplier

        try:
            multiplier = get_noise_multiplier(
                target_epsilon=budget.epsilon, target_delta=budget.delta, sample_rate=rate,
                steps=steps, accountant="prv",
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            raise OffsiteError(
                f"No amount of noise keeps {steps} steps within epsilon {budget.epsilon:g}; "
                "train fewer steps or allow a larger epsilon."
            ) from error
    return Schedule(steps, rate, multiplier, epsilon(multiplier, rate, steps, budget.delta))


def epsilon(
    multiplier: float, rate: float, steps: int, delta: float, accountant: str = "prv"
) -> float:
    """The epsilon that a run spends, by opacus's ``"prv"`` or ``"rdp"`` accountant."""
    with opacus_quiet():
        from opacus.accountants import create_accountant

        book = create_accountant(mechanism=accountant)
        book.history = [(multiplier, rate, steps)]
        return float(book.get_epsilon(delta=delta))


def train_dp(
    model: nn.Module,
    data: Any,
    *,
    loss: Loss,
    collate: Collate,
    options: TrainOptions,
    budget: PrivacyBudget,
    device: torch.device,
    rates: Sequence[tuple[Iterable[nn.Parameter], float]] = (),
) -> tuple[History, Guarantee]:
    """Train as :func:`offsite.training.train.train` does, within a privacy budget.

    Args:
        data: one example a row.
        options: ``batch_size`` rows are computed at a time, ``batch_size * accumulate`` are
            sampled for a step on average; ``max_grad_norm`` is the budget's ``clip`` instead.
        budget: what the run may reveal.

    Returns:
        The history, whose losses stay with the data owner, and the guarantee.

    Raises:
        OffsiteError: see :func:`schedule`; or a method whose gradients cannot be taken apart.
    """
    plan = schedule(budget, options, len(data))
    from offsite.training.per_example import NoisyOptimizer, check_gradients, per_example

    model.to(device)
    adamw = torch.optim.AdamW(parameter_groups(model, options, rates))
    scheduler = get_scheduler(
        options.schedule, adamw, round(options.warmup * plan.steps), plan.steps
    )
    one = torch.ones((), device=device)

    def losses(rows: Sequence[Any]) -> torch.Tensor:
        """A sum, so that the loss of an example does not depend on the others'."""
        return loss(model, {k: v.to(device) for k, v in collate(rows).items()}, one)

    start, points = time.monotonic(), []
    with opacus_quiet(), per_example(model):
        check_gradients(model, losses, [data[0], data[1]])
        model.train()
        optimizer = NoisyOptimizer(
            adamw, noise_multiplier=plan.multiplier, max_grad_norm=budget.clip,
            expected_batch_size=plan.rate * len(data),
        )  # fmt: skip
        for step in track(range(plan.steps), "tuning", plan.steps):
            drawn = torch.nonzero(secure_noise.uniform(len(data)) < plan.rate).flatten().tolist()
            total = 0.0
            for first in range(0, len(drawn), options.batch_size):
                value = losses([data[i] for i in drawn[first : first + options.batch_size]])
                torch.autograd.backward(value)
                total += value.item() / len(drawn)
                optimizer.add_examples()
            optimizer.noisy_step()
            scheduler.step()
            points.append({"step": float(step + 1), "loss": total})
    model.eval()
    mean = sum(point["loss"] for point in points) / len(points)
    spent = Guarantee(
        epsilon=plan.epsilon, delta=budget.delta, noise_multiplier=plan.multiplier, clip=budget.clip
    )
    return History(plan.steps, time.monotonic() - start, mean, tuple(points)), spent


def parameter_groups(
    model: nn.Module,
    options: TrainOptions,
    rates: Sequence[tuple[Iterable[nn.Parameter], float]],
) -> list[dict[str, Any]]:
    """The trained parameters with their learning rates; weight decay as in ordinary training."""
    own = [(list(parameters), lr) for parameters, lr in rates]
    apart = {id(p) for parameters, _ in own for p in parameters}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    groups = [(rest, options.lr or 1e-4), *own]
    return [
        {"params": parameters, "lr": lr, "weight_decay": options.weight_decay}
        for parameters, lr in groups
        if parameters
    ]


@contextmanager
def opacus_quiet() -> Iterator[None]:
    """Opacus without its warnings, which are about torch's internals and its own generator.

    Raises:
        MissingExtraError: it is not installed.
    """
    if find_spec("opacus") is None:
        raise MissingExtraError("opacus", "dp", "Differentially private tuning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
