"""The picture of a model or a delta: its blocks as a tree, repeats folded, tuned parts coloured."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from rich.text import Text
from rich.tree import Tree
from torch import nn

Shape = tuple[int, ...]
TUNED, PARTLY, PLAIN = "bold green", "green", "dim"


@dataclass
class Node:
    """One module or tensor: counts of numbers below it, and its children by name."""

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
    for name, parameter in model.named_parameters():
        chosen = parameter.requires_grad if tuned is None else name in tuned
        root.add(name.split("."), tuple(parameter.shape), chosen)
    return draw(type(model).__name__, root)


def delta_tree(title: str, shapes: Mapping[str, Shape], base: nn.Module | None = None) -> Tree:
    """The structure of a delta's tensors as a ``rich`` tree: everything in it is tuned.

    Args:
        shapes: of the tensors, by their names in ``base``.
        base: the model to show them in; None for the tensors alone.
    """
    root, found = Node(), {plain_name(name): shape for name, shape in shapes.items()}
    for name, parameter in base.named_parameters() if base is not None else ():
        root.add(name.split("."), found.get(name, tuple(parameter.shape)), name in found)
        found.pop(name, None)
    for name, shape in found.items():
        root.add(name.split("."), shape, True)
    return draw(title, root)


def plain_name(name: str) -> str:
    """A tensor's name without what peft puts before it."""
    return name.removeprefix("base_model.model.")


def tuned_names(before: nn.Module, after: nn.Module) -> set[str]:
    """Names of the parameters of ``after`` that ``before`` lacks or has with other values."""
    old = dict(before.named_parameters())
    return {
        name
        for name, value in after.named_parameters()
        if name not in old
        or old[name].shape != value.shape
        or not (old[name] is value or torch.equal(old[name].detach(), value.detach()))
    }


def draw(title: str, root: Node) -> Tree:
    """A ``rich`` tree of a node; shares are of the root's numbers."""
    total = max(root.count, 1)
    tree = Tree(label(title, root, total), guide_style="dim")

    def grow(branch: Tree, node: Node) -> None:
        for name, child, copies in fold(node.children):
            while child.shape is None and len(child.children) == 1:  # modules of modules: one line
                ((inner, child),) = child.children.items()
                name = f"{name}.{inner}"
            grow(branch.add(label(name, child, total, copies)), child)

    grow(tree, root)
    return tree


def fold(children: Mapping[str, Node]) -> Iterator[tuple[str, Node, int]]:
    """Children in order; equal numbered ones as one, such as ``0-1, 22-23`` of 4."""
    folded: list[tuple[list[str], Node]] = []
    for name, child in children.items():
        same = next(
            (n for n, c in folded if name.isdigit() and n[0].isdigit() and c == child), None
        )
        if same is None:
            folded.append(([name], child))
        else:
            same.append(name)
    for names, child in folded:
        yield (names[0] if len(names) == 1 else spell(map(int, names))), child, len(names)


def spell(numbers: Iterable[int]) -> str:
    """Ascending numbers with runs folded: ``0-1, 22-23``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def label(name: str, node: Node, total: int, copies: int = 1) -> Text:
    """One line: name, repeats, shape, numbers, share, and how much of it is tuned.

    Of repeats the numbers are those of all together; below, those of each.
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
