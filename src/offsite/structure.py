"""The picture of a model or a delta: its blocks as a tree, repeats folded, tuned parts coloured."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich.text import Text
from rich.tree import Tree
from torch import nn

from offsite.delta import Delta

TUNED, PARTLY, PLAIN = "bold green", "green", "dim"


@dataclass
class Node:
    """One module or tensor: counts of numbers below it, and its children by name."""

    shape: tuple[int, ...] | None = None
    count: int = 0
    tuned: int = 0
    children: dict[str, Node] = field(default_factory=dict)

    def add(self, path: Sequence[str], shape: tuple[int, ...], tuned: bool) -> None:
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


def delta_tree(delta: Delta) -> Tree:
    """The structure of a delta as a ``rich`` tree: everything in it is tuned."""
    root = Node()
    for name, entry in delta.manifest.tensors.items():
        root.add(name.split("."), entry.shape, True)
    return draw(f"delta of {delta.manifest.model_name} ({delta.manifest.method['kind']})", root)


def tuned_names(before: nn.Module, after: nn.Module) -> set[str]:
    """Names of the parameters of ``after`` that ``before`` lacks or has with other values."""
    old = dict(before.named_parameters())
    return {
        name
        for name, value in after.named_parameters()
        if name not in old
        or old[name].shape != value.shape
        or not bool((old[name].detach() == value.detach()).all())
    }


def draw(title: str, root: Node) -> Tree:
    """A ``rich`` tree of a node; shares are of the root's numbers."""
    total = max(root.count, 1)
    tree = Tree(label(title, root, total), guide_style="dim")

    def grow(branch: Tree, node: Node) -> None:
        for name, child, copies in fold(node.children):
            grow(branch.add(label(name, child, total, copies)), child)

    grow(tree, root)
    return tree


def fold(children: Mapping[str, Node]) -> Iterator[tuple[str, Node, int]]:
    """Children in order; runs of equal numbered ones as one, such as ``2-21`` of 20."""
    names = list(children)
    start = 0
    while start < len(names):
        end = start + 1
        while (
            end < len(names)
            and names[start].isdigit()
            and names[end].isdigit()
            and int(names[end]) == int(names[end - 1]) + 1
            and children[names[end]] == children[names[start]]
        ):
            end += 1
        copies = end - start
        name = names[start] if copies == 1 else f"{names[start]}-{names[end - 1]}"
        yield name, children[names[start]], copies
        start = end


def label(name: str, node: Node, total: int, copies: int = 1) -> Text:
    """One line: name, repeats, shape, numbers, share, and how much of it is tuned."""
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
    return text
