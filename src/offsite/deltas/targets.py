"""Choose the layers of the adapter blocks that a method tunes, in any family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from offsite.errors import OffsiteError, require
from offsite.model.blocks import block_path, get_blocks
from offsite.model.layers import (
    Described,
    LowRankLinear,
    QuantisedLinear,
    is_attention,
    linear_spec,
)


def part_of(name: str) -> str:
    """The part of a block a parameter belongs to: ``attention``, ``mlp`` or ``norm``.

    Judged by the family's own names: ``norm`` or ``ln`` in the module's name is a norm, ``attn`` or
    ``attention`` above it is attention, and the rest of a block is its feed-forward.
    """
    names = [part.lower() for part in name.split(".")[:-1]]
    last = names[-1] if names else ""
    if "norm" in last or last.startswith("ln") or "scale" in last:
        return "norm"
    if is_attention(".".join(names)):
        return "attention"
    return "mlp"


def linears(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every linear layer of a block by name; a low-rank or quantised one counts as one layer.

    Layers inside a harmonizer are passed over, and so are those that compute something else than
    a product, such as a router that returns its choice of experts.
    """
    inside: tuple[str, ...] = ()
    for name, module in block.named_modules():
        if name.startswith(inside):
            continue
        if isinstance(module, Described):
            inside = (*inside, f"{name}." if name else "")
        own = isinstance(module, (LowRankLinear, QuantisedLinear))
        plain = type(module).forward in (nn.Linear.forward, Conv1D.forward)
        if own or plain:
            yield name, module


def linear_names(model: nn.Module, blocks: Sequence[int], targets: str) -> list[str]:
    """Names inside a block of the linear layers to work on, in the order of the block.

    Args:
        targets: ``all`` (peft's ``all-linear`` too), ``attention``, ``mlp``, or leaf names
            separated by commas.

    Raises:
        OffsiteError: nothing in the blocks matches, or a name of no layer there.
    """
    found = {
        name: None  # a dictionary keeps the order
        for index in blocks
        for name, _ in linears(get_blocks(model)[index])
    }
    chosen = set(targets.replace(" ", "").replace("all-linear", "all").split(","))
    wanted = [
        name
        for name in found
        if chosen & {"all", part_of(f"{name}.weight"), name.rsplit(".", 1)[-1]}
    ]
    known = sorted({name.rsplit(".", 1)[-1] for name in found})
    require(
        bool(wanted) and chosen <= {"all", "attention", "mlp", *known},
        f"No linear layer of the adapter blocks matches targets={targets}; use all, attention, "
        f"mlp, or names among {', '.join(known)}.",
    )
    return wanted


def linear_layers(model: nn.Module, blocks: Sequence[int], targets: str) -> dict[str, nn.Module]:
    """The linear layers to work on, by full name in the model, blocks ascending."""
    names, path = linear_names(model, blocks, targets), block_path(model)
    return {
        f"{path}.{index}.{name}": layer
        for index in sorted(blocks)
        for name, layer in linears(get_blocks(model)[index])
        if name in names
    }


def sublayer_outputs(block: nn.Module) -> dict[str, nn.Module]:
    """The linear layer with which attention and feed-forward each write to the residual stream.

    It is the last linear layer of its part, in every family transformers registers in the order
    of computation. Its output is taken before dropout and residual, which BLOOM adds inside, and
    behind what peft adds to it.

    Raises:
        OffsiteError: a part is missing or does not end in a plain linear layer (a mixture of
            experts, a harmonizer).
    """
    last: dict[str, nn.Module] = {}
    widths: dict[str, int] = {}
    wrapped: tuple[str, ...] = ()
    for name, module in block.named_modules():
        spec = linear_spec(getattr(module, "base_layer", module))  # of a layer that peft wraps
        if spec is not None and not name.startswith(wrapped):
            part = part_of(f"{name}.weight")
            last[part], widths[part] = module, spec.outputs
            wrapped = (*wrapped, f"{name}.")
    if not {"attention", "mlp"} <= set(last) or widths["attention"] != widths["mlp"]:
        raise OffsiteError(
            f"The adapter block {type(block).__name__} does not end its attention and its "
            "feed-forward in plain linear layers of one width; use lora or full instead."
        )
    return last
