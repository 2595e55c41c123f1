"""Safetensors files from somebody else: the header is checked before a tensor is read.

The safetensors library accepts NaN, infinities, any tensor name and headers of 100 MB; these are
checked here. Nothing in this package reads tensors in any other format.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from offsite.errors import OffsiteError

MAX_HEADER_BYTES = 4 * 1024 * 1024
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}")
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2}  # others: 1


class TensorEntry(BaseModel):
    """One tensor as a manifest names it: safetensors dtype (``"BF16"``) and shape."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorEntry:
        """The entry that describes ``tensor``."""
        return cls(dtype=DTYPES[tensor.dtype], shape=tuple(tensor.shape))

    @property
    def bytes(self) -> int:
        """Size of the tensor's data on disk."""
        count = 1
        for length in self.shape:
            count *= length
        return count * SIZES.get(self.dtype, 1)


def describe(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorEntry]:
    """Entries for a whole dictionary of tensors, by name."""
    return {name: TensorEntry.of(tensor) for name, tensor in sorted(tensors.items())}


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors a safetensors file declares, without reading any of them.

    Raises:
        OffsiteError: header over 4 MB, not strict JSON, an unsafe tensor name, an unknown dtype, or
            offsets that leave gaps, overlap or do not fill the file exactly.
    """

    def refuse(reason: str) -> OffsiteError:
        return OffsiteError(f"'{path}' is not an acceptable safetensors file: {reason}.")

    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
            raise refuse("its header is truncated or larger than 4 MB")
        text = file.read(length)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise refuse("its header repeats a name")
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=unique)
        header.pop("__metadata__", None)
        spans, entries = [], {}
        for name, entry in header.items():
            if not NAME.fullmatch(name) or ".." in name:
                raise refuse("it has a tensor name with unusual characters")
            entries[name] = TensorEntry(dtype=entry["dtype"], shape=tuple(entry["shape"]))
            begin, end = entry["data_offsets"]
            spans.append((begin, end))
            known = entries[name].dtype in DTYPES.values()
            if not known or min(entries[name].shape, default=0) < 0:
                raise refuse("it has a tensor of an unknown dtype or a negative shape")
            if end - begin != entries[name].bytes:
                raise refuse("a tensor's size disagrees with its shape")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, OffsiteError):
            raise
        raise refuse("its header is malformed") from error
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise refuse("its tensors overlap or leave a gap")
        position = end
    if 8 + length + position != size:
        raise refuse("it is truncated or has bytes after its last tensor")
    return entries


def load_tensors(
    paths: Sequence[Path], expected: Mapping[str, TensorEntry] | None = None
) -> dict[str, torch.Tensor]:
    """Load safetensors files whose headers are as ``expected`` and whose values are all finite.

    Raises:
        OffsiteError: see :func:`read_header`; names, shapes or dtypes other than expected; a tensor
            in two files; NaN or infinity in any floating-point tensor.
    """
    declared: dict[str, TensorEntry] = {}
    for path in paths:
        header = read_header(path)
        if declared.keys() & header.keys():
            raise OffsiteError(f"'{path}' repeats a tensor that another file of the folder has.")
        declared |= header
    if expected is not None and declared != dict(expected):
        odd = sorted(
            name
            for name in declared.keys() | expected.keys()
            if declared.get(name) != expected.get(name)
        )
        raise OffsiteError(
            f"The tensors on disk are not those of the manifest ({len(odd)} differ, "
            f"first '{odd[0]}'); the folder is damaged or was changed."
        )
    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            raise OffsiteError(f"'{path}' cannot be read as safetensors; it is damaged.") from error
    check_finite(tensors)
    return tensors


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse NaN and infinity.

    Raises:
        OffsiteError: naming the first tensor that holds one.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise OffsiteError(
                f"The tensor '{name}' holds NaN or infinity; only finite values are accepted, so "
                "tune again with a lower learning rate."
            )


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write one safetensors file, names sorted, one metadata key, so that it is byte-stable."""
    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    save_file(ready, path, metadata={"format": "pt"})


def parse(model: type[BaseModel], data: Any, path: str | Path) -> Any:
    """Validate parsed JSON against a schema.

    Raises:
        OffsiteError: naming the first offending key, never its value.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "its top level"
        raise OffsiteError(
            f"'{path}' does not follow the format: {where}: {first['msg'].lower()}."
        ) from error
