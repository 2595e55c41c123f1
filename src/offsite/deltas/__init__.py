"""The tuning methods: one file each, all attached and plugged the same way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from offsite.codec import from_json, to_json
from offsite.deltas.addition.bottleneck import Bottleneck
from offsite.deltas.addition.intrinsic_prompt import IntrinsicPrompt
from offsite.deltas.addition.prefix import Prefix
from offsite.deltas.addition.prompt import Prompt
from offsite.deltas.combined import Combined
from offsite.deltas.method import Method
from offsite.deltas.reparameterisation.fourier import FourierFT
from offsite.deltas.reparameterisation.ia3 import IA3
from offsite.deltas.reparameterisation.intrinsic import IntrinsicDimension
from offsite.deltas.reparameterisation.loha import LoHa
from offsite.deltas.reparameterisation.lokr import LoKr
from offsite.deltas.reparameterisation.lora import LoRA
from offsite.deltas.reparameterisation.oft import OFT
from offsite.deltas.reparameterisation.vera import VeRA
from offsite.deltas.specification.bitfit import BitFit
from offsite.deltas.specification.diff_pruning import DiffPruning
from offsite.deltas.specification.full import Full
from offsite.deltas.specification.head import Head
from offsite.deltas.specification.masking import Masking
from offsite.errors import OffsiteError

__all__ = [
    "IA3",
    "METHODS",
    "OFT",
    "BitFit",
    "Bottleneck",
    "Combined",
    "DiffPruning",
    "FourierFT",
    "Full",
    "Head",
    "IntrinsicDimension",
    "IntrinsicPrompt",
    "LoHa",
    "LoKr",
    "LoRA",
    "Masking",
    "Method",
    "Prefix",
    "Prompt",
    "VeRA",
    "method_json",
    "method_text",
    "one_method",
    "parse_method",
]

LARGEST = 2**20  # of any number in a method but a seed
METHODS: dict[str, type] = {
    method.kind: method
    for method in (
        Full,
        LoRA,
        IA3,
        LoHa,
        LoKr,
        VeRA,
        OFT,
        FourierFT,
        Bottleneck,
        Prefix,
        Prompt,
        IntrinsicPrompt,
        BitFit,
        DiffPruning,
        Masking,
        IntrinsicDimension,
        Head,
    )
}


ALIASES: dict[str, dict[str, Any]] = {  # names that papers and other tools use
    "dora": {"kind": "lora", "dora": True},
    "rslora": {"kind": "lora", "rslora": True},
    "houlsby": {"kind": "bottleneck", "style": "houlsby"},
    "pfeiffer": {"kind": "bottleneck", "style": "pfeiffer"},
    "said": {"kind": "intrinsic", "structured": True},
    "fourierft": {"kind": "fourier"},
    "ipt": {"kind": "intrinsic_prompt"},
}


def parse_method(data: Any) -> Method:
    """A method from its JSON form ``{"kind": "lora", "rank": 8}``.

    Several together are ``{"kind": "combined", "methods": [...]}``.

    Raises:
        OffsiteError: unknown method or option, or methods that cannot be combined.
    """
    if isinstance(data, Mapping) and data.get("kind") == Combined.kind:
        parts = data.get("methods")
        if data.keys() != {"kind", "methods"} or not isinstance(parts, (list, tuple)):
            raise OffsiteError("A combined delta method has a list of 'methods' and nothing else.")
        return Combined(tuple(one_method(part) for part in parts))
    return one_method(data)


def one_method(data: Any) -> Method:
    """Parse a single method, by its name or an alias; refuse values above 2**20."""
    if isinstance(data, Mapping) and isinstance(kind := data.get("kind"), str):
        data = {**data, **ALIASES.get(kind, {})}
    method: Method = from_json(METHODS, data, "delta method")
    for name, value in to_json(method).items():
        if isinstance(value, (int, float)) and abs(value) > LARGEST and name != "seed":
            raise OffsiteError(
                f"A {name} of {value:g} is beyond what '{method.kind}' can use; take at most "
                f"{LARGEST}."
            )
    return method


def method_text(data: Mapping[str, Any]) -> str:
    """A method in JSON form as :func:`method_json` reads it, without what is the default.

    Something else is shown as it is.
    """
    kind, parts = str(data.get("kind", "")), data.get("methods")
    if parts and isinstance(parts, (list, tuple)) and all(isinstance(p, Mapping) for p in parts):
        return "+".join(method_text(part) for part in parts)
    known = METHODS.get(kind)
    usual = {} if known is None else to_json(known())
    options = [f"{k}={v}" for k, v in data.items() if k != "kind" and v != usual.get(k)]
    return ":".join(filter(None, (kind, ",".join(options))))


def method_json(text: str, options: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON form of ``lora`` or ``lora:rank=8,alpha=4`` and ``--option key=value`` pairs.

    Several together are joined: ``lora:rank=8+bitfit``.

    Raises:
        OffsiteError: an option that is not a pair, or one for several methods.
    """
    parts = re.split(r"\+(?=[a-z])", text)  # not that of alpha=1e+3
    if len(parts) > 1:
        if options:
            raise OffsiteError(
                f"An --option cannot tell which method of '{text}' it is for; write it behind the "
                "method's name, as in lora:rank=8+bitfit."
            )
        return {"kind": Combined.kind, "methods": [method_json(part) for part in parts]}
    kind, _, inline = text.partition(":")
    found: dict[str, Any] = {"kind": kind}
    pieces = re.split(r",(?=[^,=]*=)", inline) if inline else []  # a value may be q_proj,v_proj
    for pair in (*pieces, *options):
        key, equals, value = pair.partition("=")
        if not equals:
            raise OffsiteError(
                f"'{pair}' is not an option; write NAME=VALUE, as in --option rank=8 or "
                "lora:rank=8."
            )
        if key in found:
            raise OffsiteError(f"'{key}' is given twice for the method '{kind}'; give it once.")
        found[key] = {"true": True, "false": False}.get(value.lower(), value)
    return found
