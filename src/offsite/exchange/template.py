"""Find chat templates that would run for ever or take all memory, by reading them.

A template runs in the sandbox of jinja2, which keeps it from code and files but not from work: it
can count far, copy a text, or double one again and again. The limits are far above what published
templates do. Not every such template can be told by reading; ``SECURITY.md`` says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from offsite.errors import OffsiteError
from offsite.files import reason

LARGEST_COUNT = 10_000  # of a range, of copies, or of the calls that macros make of each other
DEEPEST_LOOP = 4
WAY = "the model's owner must correct it or leave it out with --leave-out chat-template"
GROWTH = 16.0  # of a text by all replacements of a template together
WIDTH = re.compile(r"[%:][^%:]{0,8}\d{5}")  # in a format: a width of five digits or more
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # a tag of transformers' own


def vet_template(text: str) -> None:
    """Refuse a chat template that works far more than a conversation needs.

    Raises:
        OffsiteError: large counts, deep loops, powers, or texts that double themselves.
    """
    from jinja2 import Environment, TemplateError

    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION.sub("", text))
        endless = any(found for found in faults(tree))
    except (TemplateError, RecursionError) as error:
        raise OffsiteError(
            f"The chat template is not a valid Jinja template ({reason(error)}); {WAY}."
        ) from error
    if endless:
        raise OffsiteError(
            "The chat template repeats far more than a conversation needs and could run for ever; "
            f"{WAY}."
        )


def faults(tree: Any) -> Iterator[bool]:
    """Whether each kind of endless work is there."""
    from jinja2 import nodes

    yield depth(tree) > DEEPEST_LOOP
    yield any(loop.recursive for loop in tree.find_all(nodes.For))
    yield next(iter(tree.find_all(nodes.Pow)), None) is not None
    yield any(node.name == "lipsum" for node in tree.find_all(nodes.Name))
    constants = [node.value for node in tree.find_all(nodes.Const)]
    yield any(abs(value) > LARGEST_COUNT for value in numbers(constants))
    yield any(WIDTH.search(value) for value in constants if isinstance(value, str))
    counted = [largest(c.args) for c in tree.find_all(nodes.Call) if called(c) == "range"]
    counted += [largest([node.left, node.right]) for node in tree.find_all(nodes.Mul)]
    yield product(counted) > LARGEST_COUNT
    yield growth(tree) > GROWTH
    yield any(doubles(names) for names in built(tree))
    yield calls(tree) > LARGEST_COUNT


def numbers(values: Iterable[Any]) -> list[float]:
    """The numbers among some values."""
    return [value for value in values if isinstance(value, (int, float))]


def largest(given: Iterable[Any]) -> float:
    """The largest number among nodes of a template; 1 where there is none."""
    return max(map(abs, numbers(getattr(node, "value", None) for node in given)), default=1)


def product(factors: Iterable[float]) -> float:
    """The product of factors of which none is below one."""
    found = 1.0
    for factor in factors:
        found *= max(1.0, factor)
    return found


def called(call: Any) -> str | None:
    """The name of the function or macro, or of the method, that a call calls."""
    return getattr(call.node, "name", None) or getattr(call.node, "attr", None)


def growth(tree: Any) -> float:
    """How many times longer the replacements of a template can make a text, all together."""
    from jinja2 import nodes

    replacements = [node for node in tree.find_all(nodes.Filter) if node.name == "replace"]
    replacements += [node for node in tree.find_all(nodes.Call) if called(node) == "replace"]
    return product(
        len(str(new.value)) / max(1, len(str(old.value)))
        for node in replacements
        for old, new in [node.args[:2]]
        if isinstance(old, nodes.Const) and isinstance(new, nodes.Const)
    )


def built(tree: Any) -> Iterator[list[Any]]:
    """The parts of every text or list that a template puts together."""
    from jinja2 import nodes

    for node in tree.find_all(nodes.Add):
        yield [node.left, node.right]
    for node in tree.find_all(nodes.Concat):
        yield node.nodes
    for node in tree.find_all((nodes.List, nodes.Tuple)):
        yield node.items
    for block in tree.find_all(nodes.AssignBlock):
        outputs = [node for node in block.body if isinstance(node, nodes.Output)]
        yield [part for output in outputs for part in output.nodes]


def doubles(parts: Iterable[Any]) -> bool:
    """Whether a text is put together of the same name twice, as what doubles itself is."""
    names = [part for part in parts if type(part).__name__ in ("Name", "NSRef", "Getattr")]
    return any(a == b for i, a in enumerate(names) for b in names[:i])


def calls(tree: Any) -> float:
    """How many macro calls a single call can lead to; infinite where a macro counts with itself.

    A macro that calls itself on a part of its argument ends with the argument. One that calls
    itself with arithmetic or a slice can go on as long as it likes.
    """
    from jinja2 import nodes

    macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
    costs: dict[str, float] = {}

    def cost(name: str, above: tuple[str, ...]) -> float:
        if name in above:
            return 1.0
        if name not in costs:
            inner = [other for call in macros[name].find_all(nodes.Call) if (other := called(call))]
            costs[name] = 1 + sum(cost(o, (*above, name)) for o in inner if o in macros)
        return costs[name]

    if any(counts(call) for macro in macros.values() for call in recursions(macro)):
        return math.inf
    return max((cost(name, ()) for name in macros), default=0.0)


def recursions(macro: Any) -> Iterator[Any]:
    """The calls by which a macro calls itself."""
    from jinja2 import nodes

    return (call for call in macro.find_all(nodes.Call) if called(call) == macro.name)


def counts(call: Any) -> bool:
    """Whether a call has arithmetic or a slice in its arguments."""
    from jinja2 import nodes

    kinds = (nodes.BinExpr, nodes.Slice)
    return any(
        isinstance(given, kinds) or next(iter(given.find_all(kinds)), None) for given in call.args
    )


def depth(node: Any) -> int:
    """How deep the loops of a template are nested."""
    inner = max((depth(child) for child in node.iter_child_nodes()), default=0)
    return inner + (type(node).__name__ == "For")
