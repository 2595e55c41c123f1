"""The structure of a model or a delta as a tree: repeats folded, tuned parts coloured."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.text import Text
from rich.tree import Tree
from torch import nn

from offsite.model.layers import QuantisedLinear

Shape = tuple[int, ...]
TUNED, PARTLY, PLAIN = "bold green", "green", "dim"


@dataclass
class Node:
    """One module or tensor: counts of parameters below it, and its children by name."""

    shape: Shape | None = None
    count: int = 0
    tuned: int = 0
    children: dict[str, Node] = field(default_factory=dict)

    def add(self, path: Sequence[str], shape: Shape, tuned: bool) -> None:
        """Enter a tensor below this node."""
        count = 1
        for length in shape:
            count *= length
        node = self
        for part in (None, *path):
            if part is not None:
                node = node.children.setdefault(part, Node())
            node.count += count
            node.tuned += count * tuned
        node.shape = shape


def model_tree(model: nn.Module, tuned: Collection[str] | None = None) -> Tree:
    """The structure of a model as a ``rich`` tree.

    Args:
        tuned: names of tuned parameters; by default those that require gradients.
    """
    root = Node()
    for name, tensor in held_tensors(model):
        chosen = tensor.requires_grad if tuned is None else name in tuned
        root.add(name.split("."), tuple(tensor.shape), chosen)
    return draw(type(model).__name__, root)


def delta_tree(title: str, shapes: Mapping[str, Shape], base: nn.Module | None = None) -> Tree:
    """The structure of a delta's tensors as a ``rich`` tree: everything in it is tuned.

    Args:
        shapes: of the tensors, by their names in ``base``.
        base: the model to show them in; None for the tensors alone.
    """
    root, found = Node(), {plain_name(name): shape for name, shape in shapes.items()}
    for name, tensor in held_tensors(base) if base is not None else ():
        root.add(name.split("."), found.get(name, tuple(tensor.shape)), name in found)
        found.pop(name, None)
    for name, shape in found.items():
        root.add(name.split("."), shape, True)
    return draw(title, root)


def held_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A model's parameters, and what its quantised layers have in their place, layer by layer."""
    parameters = {name for name, _ in model.named_parameters()}  # shared ones once
    for prefix, module in model.named_modules():
        own = [*module.named_parameters(prefix, recurse=False)]
        yield from ((name, tensor) for name, tensor in own if name in parameters)
        if isinstance(module, QuantisedLinear):
            yield from module.named_buffers(prefix, recurse=False)


def plain_name(name: str) -> str:
    """A tensor's name without what peft puts before it."""
    return name.removeprefix("base_model.model.")


def draw(title: str, root: Node) -> Tree:
    """A ``rich`` tree of a node; shares are of the root's parameters."""
    total, kinds = max(root.count, 1), kinds_of(root)
    tree = Tree(label(title, root, total), guide_style="dim")

    def grow(branch: Tree, node: Node) -> None:
        for name, child, copies in fold(node.children, kinds):
            while child.shape is None and len(child.children) == 1:  # modules of modules: one line
                ((inner, child),) = child.children.items()
                name = f"{name}.{inner}"
            grow(branch.add(label(name, child, total, copies)), child)

    grow(tree, root)
    return tree


def kinds_of(root: Node) -> dict[int, int]:
    """A number for every node, by its ``id``; equal nodes, and they alone, have the same one."""
    known: dict[Any, int] = {}
    kinds: dict[int, int] = {}

    def number(node: Node) -> int:
        below = frozenset((name, number(child)) for name, child in node.children.items())
        signature = (node.shape, node.count, node.tuned, below)
        kinds[id(node)] = known.setdefault(signature, len(known))
        return kinds[id(node)]

    number(root)
    return kinds


def fold(children: Mapping[str, Node], kinds: Mapping[int, int]) -> Iterator[tuple[str, Node, int]]:
    """Children in order; numbered ones of one kind as one, such as ``0-1, 22-23`` of 4."""
    folded: dict[str | int, tuple[list[str], Node]] = {}
    for name, child in children.items():
        key = kinds[id(child)] if name.isdigit() else name
        folded.setdefault(key, ([], child))[0].append(name)
    for names, child in folded.values():
        yield (names[0] if len(names) == 1 else ranges(map(int, names))), child, len(names)


def ranges(numbers: Iterable[int]) -> str:
    """Ascending whole numbers as ranges: ``0-1, 22-23``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def label(name: str, node: Node, total: int, copies: int = 1) -> Text:
    """One line: name, repeats, shape, parameters, share, and how much of it is tuned.

    A line of repeats counts the parameters of all; the lines below count those of each.
    """
    style = PLAIN if not node.tuned else TUNED if node.tuned == node.count else PARTLY
    text = Text(name, style=style)
    if copies > 1:
        text.append(f" x{copies}", style="bold")
    if node.shape is not None:
        text.append(f" ({', '.join(map(str, node.shape))})", style="cyan")
    count = node.count * copies
    text.append(f"  {count:,}  {100 * count / total:.1f}%", style="dim")
    if 0 < node.tuned < node.count:
        share = 100 * node.tuned / node.count
        text.append(f"  tuned {node.tuned * copies:,} ({share:.2g}%)", style=PARTLY)
    if copies > 1:
        text.append("  each:", style="dim")
    return text
