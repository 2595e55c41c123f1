"""A tuning method: a frozen dataclass that attaches itself to some blocks of a model.

The same code attaches on both sides: to the emulator at the adapter's positions there, and to the
full model at the adapter's positions in it. So *plugging* is: attach, load, and merge if possible.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn

from offsite.errors import OffsiteError
from offsite.model.blocks import block_of, block_path
from offsite.model.tensors import TensorEntry, describe


class Method(ABC):
    """One delta-tuning method.

    Attributes:
        kind: its name on the command line and in manifests.
        place: what it occupies in the model, of which there is one: ``weights`` to recompute,
            ``prefix``, ``prompt``, ``bottleneck``; empty for parameters tuned where they are.
        side: the side tensors of an offer that it works with; empty for none.
        merges: whether :meth:`Attached.merge` gives a plain model of the family.
        reaches: whether it may tune middle blocks too: it adds to weights, so its change to an
            emulator's block means the same on the block of the full model.
        lr: a learning rate that is a fair start for it.
        when: one line on when to choose it.
    """

    kind: ClassVar[str]
    place: ClassVar[str] = ""
    side: ClassVar[str] = ""

    @property
    def merges(self) -> bool:
        return False

    @property
    def reaches(self) -> bool:
        return False

    @property
    @abstractmethod
    def lr(self) -> float: ...

    @property
    @abstractmethod
    def when(self) -> str: ...

    @abstractmethod
    def install(self, model: nn.Module, blocks: Sequence[int]) -> Attached:
        """Attach this one method; called by :meth:`attach`."""

    def attach(self, model: nn.Module, blocks: Sequence[int]) -> Attached:
        """Freeze ``model`` but for this method's parameters in ``blocks``.

        Changes ``model`` in place. Before training the output is unchanged unless the method's
        docstring says otherwise.

        Raises:
            OffsiteError: blocks that the method cannot work on, or a parameter outside of them
                that would be trained.
        """
        path = block_path(model)
        own = {id(parameter) for parameter in model.parameters()}
        attached = self.install(model, blocks)
        for name, parameter in attached.model.named_parameters():
            index = block_of(name, path)
            outside = index not in blocks if index is not None else id(parameter) in own
            if parameter.requires_grad and outside:
                way = "choose other layers, as with targets=attention, or use full"
                if self.kind == "full":  # Zamba has one attention, which many blocks use
                    way = "use lora with targets= for layers that no other block shares"
                raise OffsiteError(
                    f"The method '{self.kind}' would train '{name}', which is outside the blocks "
                    f"{list(blocks)}; {way}."
                )
        return attached


class Attached:
    """A method at work in a model; what :meth:`Method.attach` returns.

    Attributes:
        method: the method.
        model: the model to run.
        parameters: what is trained.
    """

    def __init__(self, method: Method, model: nn.Module) -> None:
        self.method, self.model = method, model
        self.parameters = tuple(p for p in model.parameters() if p.requires_grad)

    @property
    def rates(self) -> list[tuple[Sequence[nn.Parameter], float]]:
        """What is trained, and the learning rate that is a fair start for it."""
        return [(self.parameters, self.method.lr)]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that the delta holds, by name in the model."""
        raise NotImplementedError

    def expected(self, given: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
        """The names, shapes and dtypes a delta may have; ``given`` is what one declares."""
        return describe(self.tensors())

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the values of the tensors that the delta holds."""
        raise NotImplementedError

    def merge(self) -> nn.Module:
        """Fold the change into the weights and return the plain model.

        Raises:
            OffsiteError: a method that does not merge.
        """
        if not self.method.merges:
            raise OffsiteError(
                f"A {self.method.kind} delta cannot be folded into the weights; it stays attached, "
                "so use load_plugged to serve it, or tune with lora, full or another method that "
                "merges."
            )
        return self.detach()

    def detach(self) -> nn.Module:
        """Take the method's modules out, in place, and return the plain model.

        Without them the weights are bit-equal to what they were; what merges is folded in.
        """
        raise NotImplementedError

    def served(
        self, tensors: Mapping[str, torch.Tensor]
    ) -> tuple[Method, dict[str, torch.Tensor], str | None]:
        """Method, tensors and peft configuration with which a plugged delta is kept for serving."""
        return self.method, dict(tensors), self.peft_config()

    def divide(
        self, tensors: Mapping[str, torch.Tensor]
    ) -> list[tuple[Method, dict[str, torch.Tensor]]]:
        """The single methods that are at work, each with those of ``tensors`` that are its own."""
        return [(self.method, dict(tensors))]

    def peft_config(self) -> str | None:
        """The text of ``adapter_config.json`` if the tensors form a peft adapter, else None."""
        return None
