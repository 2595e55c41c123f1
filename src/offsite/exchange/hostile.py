"""Find tokenizers, chat templates and preprocessors that would not end, by reading them.

None of these runs code, but each can be written so that a short text takes hours or all memory: a
normaliser that puts a megabyte in the place of a letter, a pattern that backtracks, nested loops.
They are refused before any of them is used. The limits are far above what published models have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from offsite.errors import OffsiteError
from offsite.exchange.template import vet_template
from offsite.files import parse_json, read_json

GROWTH = 16.0  # characters that a normaliser may make of one, all of its steps together
LONGEST_PADDING = 2**20
LARGEST_SIDE = 4096
MOST_MODULES = 2**12  # of a model; of transformers' default models the largest has 1,944
MOST_ADDED = 64  # tokens that a post-processor may put around a text
SIDES = (
    "height", "width", "shortest_edge", "longest_edge", "size", "crop_size", "pad_size",
    "patch_size", "size_divisor", "ensure_multiple_of", "max_height", "max_width",
)  # fmt: skip


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
    if growth > GROWTH or padded(content.get("padding")) > LONGEST_PADDING or wrapped(content):
        raise OffsiteError(
            "The offer's tokenizer makes a text many times longer than it is, which would take all "
            "memory; ask its owner for a plain tokenizer."
        )


def padded(padding: Any) -> float:
    """The length to which a tokenizer pads a text at least; infinite where it is not a number."""
    strategy = padding.get("strategy") if isinstance(padding, Mapping) else None
    fixed = strategy.get("Fixed", 0) if isinstance(strategy, Mapping) else 0
    multiple = padding.get("pad_to_multiple_of") if isinstance(padding, Mapping) else None
    return max((n if isinstance(n, int) else math.inf for n in (fixed, multiple or 0)), default=0)


def wrapped(content: Mapping[str, Any]) -> bool:
    """Whether the post-processor puts more tokens around a text than any model needs."""
    parts = list(mappings(content.get("post_processor")))
    ids = (part["ids"] for part in parts if isinstance(part.get("ids"), list))
    pieces = sum("SpecialToken" in part for part in parts)
    return max(sum(map(len, ids)), pieces) > MOST_ADDED


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


def module_limit(tensors: int, shared: int) -> int:
    """How many modules a model of so many tensors may have, with so many shared blocks.

    No family of transformers has more than 2.4 modules a tensor. A block whose layers a recipe
    replaced may bring two tensors, and a shared block brings none.
    """
    return min(MOST_MODULES, 200 + 16 * tensors + 64 * shared)


@contextmanager
def limit_modules(limit: int) -> Iterator[None]:
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
