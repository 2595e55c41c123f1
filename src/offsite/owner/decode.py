"""Owner-side decoding: distil what tuning taught the emulator into the plugged model.

Plugging a delta does less to the full model than tuning did to the emulator. The owner, who holds
both models with and without the delta, can predict better than the plugged model does, and can
teach the plugged model these predictions, on text or pictures of his own. The data owner has no
part in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from offsite.deltas import method_text, parse_method
from offsite.deltas.reparameterisation.lora import LoRA
from offsite.errors import OffsiteError, check_seed, require
from offsite.exchange.delta import Delta
from offsite.exchange.offer import Offer
from offsite.model.blocks import get_blocks, with_own_blocks
from offsite.model.checkpoint import DTYPES
from offsite.model.kind import IMAGE, kind_of_task
from offsite.owner.mixture import Mixture, Student
from offsite.owner.sampling import SAMPLE, sampled_rows
from offsite.tasks.data import TaskData
from offsite.tasks.image.classification import ImageClassification
from offsite.tasks.source import Source
from offsite.tasks.task import Task
from offsite.tasks.text.causal import CausalText
from offsite.tasks.text.packing import window
from offsite.training.memory import trim_memory
from offsite.training.options import TrainOptions
from offsite.training.precision import in_precision, native_precision
from offsite.training.progress import say
from offsite.training.train import train


@dataclass(frozen=True)
class Decode:
    """Distil the predictions of :class:`Mixture` into the plugged model, on data of the owner.

    A low-rank change of all blocks learns them by ``KL(teacher || student)``, in nats per token or
    picture, and is merged. POST (arXiv 2506.16196, section 4) teaches soft prompts so, with one
    more term; here weights are taught.

    Attributes:
        text: a file of public text; ``"sample"`` for text drawn from the plugged model itself, each
            row from a random first token (LLM-QAT, arXiv 2305.17888); or ``"sample:FILE"`` for text
            that it draws after the first 16 tokens of rows of a file. For a model of pictures: the
            pictures, whose classes do not count.
        strength: the weight of what the emulator says, above 0 and at most 1. On SmolLM2-135M 0.4
            was better than 0.25 in four runs of four.
        steps, batch_size, lr: of AdamW, with a cosine schedule.
        rank: of the change.
        max_length: tokens of a row.
        samples: rows to draw, where the text is drawn.
        seed: of every random choice.

    Raises:
        OffsiteError: a value that cannot be used.
    """

    text: str
    strength: float = 0.4
    steps: int = 300
    batch_size: int = 8
    lr: float = 1e-3
    rank: int = 32
    max_length: int = 512
    samples: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            0 < self.strength <= 1,
            f"The strength of decoding is above 0 and at most 1, not {self.strength}.",
        )
        require(
            self.samples >= 1 and self.max_length >= 2,
            "Decoding needs at least one row of two tokens, not "
            f"{self.samples} rows of {self.max_length} tokens.",
        )
        check_seed(self.seed)
        LoRA(rank=self.rank)
        TrainOptions(steps=self.steps, lr=self.lr, batch_size=self.batch_size)

    @property
    def file(self) -> str | None:
        """The file that rows, or their beginnings, are read from; None if there is none."""
        return None if self.text == SAMPLE else self.text.removeprefix(f"{SAMPLE}:")

    def data(self, task: str) -> TaskData | None:
        """What is read from :attr:`file` for a model of a task of this name; None without a file.

        Raises:
            OffsiteError: a model of pictures, which cannot be drawn, and no file of pictures.
        """
        if kind_of_task(task) is IMAGE:
            require(
                self.text == self.file,
                "A model of pictures cannot draw pictures; decode on a file or folder of pictures.",
            )
            return TaskData(ImageClassification(), Source.of(self.text), train=True)
        if self.file is None:
            return None
        return TaskData(CausalText(self.max_length), Source.of(self.file), train=True)

    def rows(self, plugged: nn.Module, processor: Any, data: TaskData | None) -> Any:
        """Rows to learn from, for the plugged model where it is."""
        if data is not None and isinstance(data.task, ImageClassification):
            return replace(data.prepare(processor, plugged.config), train=True)
        given = None if data is None else data.rows(processor, plugged)
        if self.text == self.file:
            return given
        length = window(self.max_length, plugged.config)
        return sampled_rows(
            plugged, processor, given, count=self.samples, length=length, seed=self.seed
        )

    def __call__(
        self, mixture: Mixture, processor: Any, data: TaskData | None, device: torch.device
    ) -> nn.Module:
        """The plugged model of a mixture, taught; in its dtype and where it was.

        The models of the mixture stay as they are, on the device that they were on.

        Args:
            data: what :meth:`data` gives for the model.
        """
        plugged, dtype = mixture.plugged, next(mixture.plugged.parameters()).dtype
        task: Task = CausalText(self.max_length) if data is None else data.task
        with at_work([plugged], device):
            rows = self.rows(plugged, processor, data)
        trim_memory()  # drawing text grows a cache token by token, and leaves many times its size
        blocks = range(len(get_blocks(plugged)))
        torch.manual_seed(self.seed)
        change = LoRA(rank=self.rank, alpha=2 * self.rank)
        attached = change.attach(with_own_blocks(plugged, blocks), blocks)
        pair = Student(attached.model, mixture)
        options = TrainOptions(
            steps=self.steps, lr=self.lr, batch_size=self.batch_size, seed=self.seed,
            precision=native_precision(device), compile=False,
        )  # fmt: skip
        with at_work([*pair.others, pair.student], device):
            history = train(
                pair, rows, loss=lambda model, batch, items: model(batch),
                collate=task.collate, options=options, device=device,
                text="decoding", divisible=False,  # its mean is over the whole batch
            )  # fmt: skip
        losses = [point["loss"] for point in history.points if "loss" in point]
        require(
            bool(losses) and math.isfinite(losses[-1]),
            "Decoding diverged; use a lower rate, or a smaller strength.",
        )
        change_of = f"from {losses[0]:.4f} to {losses[-1]:.4f} nats"
        say(f"decode: the divergence from the teacher went {change_of}.")
        taught = attached.merge()
        for block in get_blocks(taught):
            block.to(dtype)
        return taught.requires_grad_(False).eval()


@contextmanager
def at_work(models: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Models on a device, in the precision that it trains in; at the end they are as they were."""
    homes = [next(model.parameters()).device for model in models]
    try:
        with ExitStack() as stack:
            for model in models:
                stack.enter_context(in_precision(model, DTYPES[native_precision(device)], device))
            yield
    finally:
        for model, home in zip(models, homes, strict=True):
            model.to(home)


@dataclass(frozen=True)
class Decoding:
    """Owner-side decoding of one delta: how, by which offer, and where to compute."""

    how: Decode
    offer: Offer
    device: torch.device

    @cached_property
    def data(self) -> TaskData | None:
        """What is read for the model, once."""
        return self.how.data(self.offer.manifest.task)

    def check(self, delta: Delta, *, kept_apart: bool = False) -> None:
        """Refuse what cannot be decoded, before the full model is loaded.

        Raises:
            OffsiteError: another offer than the delta's, a delta that does not merge or is to be
                kept apart, or no such text or pictures.
        """
        manifest = delta.manifest
        require(
            manifest.parent == self.offer.manifest.id,
            "The delta was tuned on another offer than this one; give the offer that it was "
            "tuned on.",
        )
        if kept_apart or not parse_method(manifest.method).merges:
            raise OffsiteError(
                f"Decoding changes weights, and the '{method_text(manifest.method)}' delta is kept "
                "apart from them; leave out --decode."
            )
        if self.data is not None:
            self.data.check()

    def taught(self, full: nn.Module, plugged: nn.Module, delta: Delta, processor: Any) -> Any:
        """The plugged model with what was decoded, in its dtype.

        The delta must have passed the checks of plugging.
        """
        mixture = Mixture.of(full, plugged, self.offer, delta, self.how.strength)
        return self.how(mixture, processor, self.data, self.device)
