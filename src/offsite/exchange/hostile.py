"""Tokenizers, chat templates and preprocessors that would never end, judged by reading them.

None of these runs code, but each can be written so that a short text takes hours or all memory: a
normaliser that puts a megabyte in the place of a letter, a pattern that backtracks, nested loops.
They are refused before any of them is used. The limits are far above what published models have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from offsite.errors import OffsiteError
from offsite.files import parse_json, read_json

GROWTH = 16.0  # characters that a normaliser may make of one, all of its steps together
LONGEST_PADDING = 2**20
LARGEST_SIDE = 4096
LARGEST_COUNT = 10_000  # of a range, or of copies of a text, in a chat template
DEEPEST_LOOP = 4
SIDES = ("height", "width", "shortest_edge", "longest_edge", "size", "crop_size", "pad_size")


def vet_side_file(path: Path) -> None:
    """Judge one file of a tokenizer or an image processor; others are passed over.

    Raises:
        OffsiteError: naming what is wrong, never a value.
    """
    if path.name == "tokenizer.json":
        vet_tokenizer(path)
    elif path.suffix == ".jinja":
        try:
            vet_template(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise OffsiteError(
                f"'{path.name}' of the offer is not UTF-8 text; ask for a fresh copy."
            ) from None
    elif path.name in ("preprocessor_config.json", "tokenizer_config.json"):
        content = read_json(path)
        if isinstance(content, Mapping):
            vet_pictures(content)
            if isinstance(template := content.get("chat_template"), str):
                vet_template(template)


def vet_tokenizer(path: Path) -> None:
    """Refuse a ``tokenizer.json`` whose steps can make a text very long or a match very slow.

    Raises:
        OffsiteError: naming the part.
    """
    content = parse_json(path.read_bytes(), Path(path.name))
    if not isinstance(content, Mapping):
        raise OffsiteError(
            "'tokenizer.json' of the offer is not a JSON object; ask for a fresh copy."
        )
    parts = {key: content.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")}
    growth = 1.0
    for name, part in parts.items():
        for step in mappings(part):
            if step.get("type") == "Replace" and name == "normalizer":
                growth *= max(1.0, len(str(step.get("content", ""))) / matched(step.get("pattern")))
            if step.get("type") == "Prepend" and len(str(step.get("prepend", ""))) > 64:
                growth = math.inf
            pattern = step.get("pattern")
            if isinstance(pattern, Mapping) and backtracks(str(pattern.get("Regex", ""))):
                raise OffsiteError(
                    f"The {name} of the offer's tokenizer has a pattern with a repetition inside a "
                    "repetition, which can take for ever; ask its owner for a plain tokenizer."
                )
    padding = content.get("padding")
    fixed = padding.get("strategy") if isinstance(padding, Mapping) else None
    fixed = fixed.get("Fixed", 0) if isinstance(fixed, Mapping) else 0
    if growth > GROWTH or not isinstance(fixed, int) or fixed > LONGEST_PADDING:
        raise OffsiteError(
            "The offer's tokenizer makes a text many times longer than it is, which would take all "
            "memory; ask its owner for a plain tokenizer."
        )


def mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every JSON object in a value, itself included."""
    if isinstance(value, Mapping):
        yield value
    inner = value.values() if isinstance(value, Mapping) else value
    for part in inner if isinstance(value, (Mapping, list)) else ():
        yield from mappings(part)


def matched(pattern: Any) -> int:
    """The characters that a pattern takes at least: its length where it is plain text, else one."""
    text = pattern.get("String") if isinstance(pattern, Mapping) else None
    return max(1, len(text)) if isinstance(text, str) else 1


def backtracks(pattern: str) -> bool:
    """Whether a group that is repeated without limit contains such a repetition itself."""
    unlimited = re.compile(r"[*+]|\{\d+,\}")
    plain = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", "x", pattern)  # escapes and classes are one letter
    opened: list[int] = []
    for place, letter in enumerate(plain):
        if letter == "(":
            opened.append(place)
        elif letter == ")" and opened:
            inside = plain[opened.pop() + 1 : place]
            follows = unlimited.match(plain, place + 1)
            possessive = follows and plain[follows.end() : follows.end() + 1] == "+"
            if follows and not possessive and unlimited.search(inside):
                return True
    return False


def vet_template(text: str) -> None:
    """Refuse a chat template with loops or copies beyond what a conversation needs.

    Raises:
        OffsiteError: large counts, deep loops, powers, or names that double themselves.
    """
    from jinja2 import Environment, TemplateError, nodes

    bare = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", text)  # a tag of transformers' own
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(bare)
    except (TemplateError, RecursionError) as error:
        raise OffsiteError("The offer's chat template is not valid; ask for a new one.") from error
    counts = 1.0
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == "range":
            counts *= largest(call.args)
    for product in tree.find_all(nodes.Mul):
        counts *= largest([product.left, product.right])
    doubled = any(repeats(node) for node in tree.find_all((nodes.Add, nodes.Concat)))
    endless = next(iter(tree.find_all(nodes.Pow)), None) is not None or doubled
    endless |= any(loop.recursive for loop in tree.find_all(nodes.For))
    if counts > LARGEST_COUNT or endless or depth(tree) > DEEPEST_LOOP:
        raise OffsiteError(
            "The offer's chat template repeats far more than a conversation needs and could run "
            "for ever; ask its owner for a plain one."
        )


def largest(given: Iterable[Any]) -> float:
    """The largest number among nodes of a template; 1 where there is none."""
    values = [getattr(node, "value", None) for node in given]
    return max((abs(value) for value in values if isinstance(value, (int, float))), default=1)


def repeats(node: Any) -> bool:
    """Whether a sum in a template has the same name twice, as what doubles itself does."""
    parts = getattr(node, "nodes", None) or [node.left, node.right]
    names = [part for part in parts if type(part).__name__ in ("Name", "NSRef", "Getattr")]
    return any(a == b for i, a in enumerate(names) for b in names[:i])


def depth(node: Any) -> int:
    """How deep the loops of a template are nested."""
    inner = max((depth(child) for child in node.iter_child_nodes()), default=0)
    return inner + (type(node).__name__ == "For")


def vet_pictures(content: Mapping[str, Any]) -> None:
    """Refuse an image processor that makes huge pictures, or values that are not finite.

    Raises:
        OffsiteError: naming the key.
    """
    for key, value in content.items():
        inner = value.items() if isinstance(value, Mapping) else [(key, value)]
        for name, number in inner:
            large = isinstance(number, (int, float)) and abs(number) > LARGEST_SIDE
            if name in SIDES and large:
                raise OffsiteError(
                    f"'preprocessor_config.json' of the offer makes pictures larger than "
                    f"{LARGEST_SIDE} pixels ('{name}'), which no model here reads; ask for a "
                    "repaired copy."
                )
        if key in ("image_mean", "image_std", "rescale_factor"):
            least = 1e-6 if key == "image_std" else 0.0
            for number in value if isinstance(value, list) else [value]:
                usable = not isinstance(number, (int, float)) or least <= abs(number) <= 1e6
                if not usable:
                    raise OffsiteError(
                        f"'preprocessor_config.json' of the offer has a '{key}' that makes "
                        "values that are not finite; ask for a repaired copy."
                    )


@contextmanager
def few_modules(limit: int) -> Iterator[None]:
    """Stop building a model that has more than ``limit`` modules.

    A configuration of a few bytes can ask for a model that takes minutes to build, on the meta
    device too.

    Raises:
        OffsiteError: there are more.
    """
    made = 0

    def count(module: nn.Module, name: str, child: Any) -> None:
        nonlocal made
        made += 1
        if made > limit:
            raise OffsiteError(
                "The offer's config.json describes a larger model than its tensors fill; it is "
                "damaged or hostile, so ask for a fresh copy."
            )

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
