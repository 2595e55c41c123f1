"""The tuning methods: one file each, all attached and plugged the same way."""

from __future__ import annotations

from typing import Any

from offsite.config import from_json
from offsite.deltas.full import Full
from offsite.deltas.lora import LoRA
from offsite.deltas.method import Method

METHODS: dict[str, type] = {method.kind: method for method in (Full, LoRA)}


def parse_method(data: Any) -> Method:
    """A method from its JSON form ``{"kind": "lora", "rank": 8}``.

    Raises:
        OffsiteError: unknown method or option.
    """
    method: Method = from_json(METHODS, data, "delta method")
    return method
