"""What a tuning method is: a frozen dataclass that can attach itself to some blocks of a model.

The same code attaches on both sides: to the emulator at the adapter's positions there, and to the
full model at the adapter's positions in it. So *plugging* is: attach, load, and merge if possible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import nn

from offsite.errors import OffsiteError
from offsite.model.tensors import TensorEntry


class Method(Protocol):
    """One delta-tuning method.

    Attributes:
        kind: its name on the command line and in manifests.
        place: what it occupies in the model, of which there is one: ``weights`` to recompute,
            ``prefix``, ``prompt``, ``bottleneck``; empty for parameters tuned where they are.
        merges: whether :meth:`merge` gives a plain model of the family.
        reaches: whether it may tune middle blocks too: it adds to weights, so its change to an
            emulator's block means the same on the block of the full model.
        lr: a learning rate that is a fair start for it.
        when: one line on when to choose it.
    """

    kind: ClassVar[str]
    place: ClassVar[str]

    @property
    def merges(self) -> bool: ...
    @property
    def reaches(self) -> bool: ...
    @property
    def lr(self) -> float: ...
    @property
    def when(self) -> str: ...

    def attach(self, model: nn.Module, blocks: Sequence[int]) -> nn.Module:
        """Freeze ``model`` but for this method's numbers in ``blocks``; return the model to run.

        Changes ``model`` in place. Before training the output is unchanged unless the method's
        docstring says otherwise.
        """

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """What travels, by name in the model that :meth:`attach` returned."""

    def expected(
        self, model: nn.Module, given: Mapping[str, TensorEntry]
    ) -> dict[str, TensorEntry]:
        """The names, shapes and dtypes a delta may have; ``given`` is what one declares.

        Usually just what :meth:`tensors` of the attached model describes.
        """

    def load(self, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set this method's numbers in the model that :meth:`attach` returned."""

    def merge(self, model: nn.Module) -> nn.Module:
        """Fold the numbers into the weights and return the plain model.

        Raises:
            OffsiteError: a method that does not merge.
        """

    def peft_config(self, model: nn.Module) -> str | None:
        """The text of ``adapter_config.json`` if the tensors form a peft adapter, else None."""


class Attached(Method, Protocol):
    """A method that does not merge: it is served with its modules in place, and can leave again."""

    def detach(self, model: nn.Module) -> nn.Module:
        """Take this method's modules out, in place; the model is plain and bit-equal again."""


def cannot_merge(method: Method) -> OffsiteError:
    """The error of ``merge`` for a method whose modules stay in the model."""
    return OffsiteError(
        f"A {method.kind} delta cannot be folded into the weights; it stays attached, so use "
        "load_plugged to serve it, or tune with lora, full or another method that merges."
    )
