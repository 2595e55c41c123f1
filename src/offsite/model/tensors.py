"""Safetensors files of somebody else: the header is checked before a tensor is read.

The safetensors library accepts NaN, infinities, any tensor name and headers of 100 MB; these are
checked here. Nothing in this package reads tensors in any other format.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file

from offsite.errors import OffsiteError
from offsite.files import is_sparse, open_regular, parse_json

MAX_HEADER_BYTES = 4 * 1024 * 1024
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}")
TensorName = Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]
DTYPES: dict[torch.dtype, Any] = {
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
TORCH: dict[str, torch.dtype] = {name: dtype for dtype, name in DTYPES.items()}
METADATA = {"format": "pt"}
Offset = Annotated[int, Field(strict=True, ge=0, lt=2**62)]
Length = Annotated[int, Field(strict=True, ge=1, lt=2**40)]


class TensorEntry(BaseModel):
    """One tensor as a manifest names it: safetensors dtype (``"BF16"``) and shape."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    dtype: Literal["F64", "F32", "BF16", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
    shape: Annotated[tuple[Length, ...], Field(max_length=8)]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorEntry:
        """The entry that describes ``tensor``.

        Raises:
            OffsiteError: a dtype that cannot be sent, such as complex numbers.
        """
        if tensor.dtype not in DTYPES:
            raise OffsiteError(
                f"Tensors of {tensor.dtype} cannot be sent; convert the model first."
            )
        return cls(dtype=DTYPES[tensor.dtype], shape=tuple(tensor.shape))

    @property
    def count(self) -> int:
        """How many entries the tensor has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of the tensor's data on disk."""
        return self.count * TORCH[self.dtype].itemsize


def describe(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorEntry]:
    """Entries for a whole dictionary of tensors, by name."""
    return {name: TensorEntry.of(tensor) for name, tensor in sorted(tensors.items())}


class _Stored(TensorEntry):
    """A tensor as a safetensors header names it: with where its data begins and ends."""

    data_offsets: tuple[Offset, Offset]


def read_header(path: Path, *, foreign: bool = False) -> dict[str, TensorEntry]:
    """The tensors a safetensors file declares, without reading any of them.

    Raises:
        OffsiteError: header over 4 MB, not strict JSON, an unsafe tensor name, an unknown dtype, or
            offsets that leave gaps, overlap or do not fill the file exactly.
    """
    with open_regular(path) as file:
        stored = _parse_header(path, *_read_prefix(path, file), foreign=foreign)
    return {name: _entry(spot) for name, spot in stored.items()}


def _entry(spot: _Stored) -> TensorEntry:
    return TensorEntry(dtype=spot.dtype, shape=spot.shape)


def _refuse(path: Path, reason: str) -> OffsiteError:
    return OffsiteError(
        f"'{path}' is not an acceptable safetensors file: {reason}; ask for a fresh copy."
    )


def _read_prefix(path: Path, file: BufferedReader) -> tuple[bytes, int]:
    """The length field and header of a safetensors file, and the bytes of data behind them."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
    if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
        raise _refuse(path, "its header is truncated or larger than 4 MB")
    return prefix + file.read(length), size - 8 - length


def _parse_header(
    path: Path, head: bytes, size: int, *, foreign: bool = False
) -> dict[str, _Stored]:
    """The entries of a header in the order of their data, which they must tile exactly."""
    header = parse_json(head[8:], path)
    if not isinstance(header, dict):
        raise _refuse(path, "its header is malformed")
    if header.pop("__metadata__", METADATA) not in (METADATA, {}) and not foreign:
        raise _refuse(path, "its metadata has entries that the format does not know")
    stored = {}
    for name, entry in header.items():
        if not NAME.fullmatch(name) or ".." in name:
            raise _refuse(path, "it has a tensor name with unusual characters")
        try:
            stored[name] = _Stored.model_validate(entry)
        except ValidationError as error:
            raise _refuse(path, "a tensor has an unknown dtype, shape or offset") from error
        begin, end = stored[name].data_offsets
        if end - begin != stored[name].bytes:
            raise _refuse(path, "a tensor's size disagrees with its shape")
    stored = dict(sorted(stored.items(), key=lambda item: item[1].data_offsets))
    position = 0
    for spot in stored.values():
        if spot.data_offsets[0] != position:
            raise _refuse(path, "its tensors overlap or leave a gap")
        position = spot.data_offsets[1]
    if position != size:
        raise _refuse(path, "it is truncated or has bytes after its last tensor")
    return stored


def load_tensors(
    paths: Sequence[Path],
    expected: Mapping[str, TensorEntry] | None = None,
    hashes: Mapping[str, str] | None = None,
    *,
    foreign: bool = False,
) -> dict[str, torch.Tensor]:
    """Load safetensors files whose headers are as ``expected`` and whose values are all finite.

    Every byte is read once, into memory of its own, and hashed as it is read: what was checked is
    what is returned, whatever happens to the files meanwhile.

    Args:
        hashes: file name to SHA-256.
        foreign: accept the metadata of other tools, which is never used; for files that do not
            cross between the parties.

    Raises:
        OffsiteError: see :func:`read_header`; a file with hardly any data; names, shapes or dtypes
            other than expected; a tensor in two files; another hash; NaN or infinity in any
            floating-point tensor.
    """
    declared: dict[str, TensorEntry] = {}
    for path in paths:
        if is_sparse(path):
            raise _refuse(path, "it is almost all holes")
        header = read_header(path, foreign=foreign)
        if declared.keys() & header.keys():
            raise OffsiteError(
                f"'{path}' repeats a tensor that another file of the folder has; ask for a fresh "
                "copy."
            )
        declared |= header
    if expected is not None and declared != dict(expected):
        odd = sorted(
            name
            for name in declared.keys() | expected.keys()
            if declared.get(name) != expected.get(name)
        )
        raise OffsiteError(
            f"The tensors on disk are not those of the manifest ({len(odd)} differ, "
            f"first '{odd[0]}'); the folder is damaged or was changed, so ask for a fresh copy."
        )
    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        sha256 = hashes[path.name] if hashes else None
        tensors |= _read_tensors(path, declared, sha256, foreign=foreign)
    check_finite(tensors)
    return tensors


def _read_tensors(
    path: Path, declared: Mapping[str, TensorEntry], sha256: str | None, *, foreign: bool
) -> dict[str, torch.Tensor]:
    """All tensors of one file, which must still be the one whose header was checked."""
    tensors = {}
    with open_regular(path) as file:
        head, size = _read_prefix(path, file)
        digest = hashlib.sha256(head)
        for name, spot in _parse_header(path, head, size, foreign=foreign).items():
            if declared.get(name) != _entry(spot):
                raise _refuse(path, "it was changed while it was read")
            data = torch.empty(spot.bytes, dtype=torch.uint8)
            if file.readinto(data.numpy().data) != spot.bytes:
                raise _refuse(path, "it was changed while it was read")
            if sha256 is not None:
                digest.update(data.numpy().data)
            if spot.dtype == "BOOL" and bool((data > 1).any()):
                raise _refuse(path, "it has truth values other than 0 and 1")
            tensors[name] = data.view(TORCH[spot.dtype]).view(spot.shape)
    if sha256 is not None and digest.hexdigest() != sha256:
        raise OffsiteError(f"'{path}' was changed while it was read; ask for a fresh copy.")
    return tensors


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse NaN and infinity.

    Raises:
        OffsiteError: naming the first tensor that holds one.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise OffsiteError(
                f"The tensor '{name}' holds NaN or infinity; only finite values are accepted, so "
                "tune again with a lower learning rate."
            )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; integers never do."""
    parts = torch.split(tensor.flatten(), 2**22) if tensor.is_floating_point() else ()
    return all(bool(torch.isfinite(part).all()) for part in parts)  # no copy of a whole tensor


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write one safetensors file, names sorted, one metadata key, so that it is byte-stable."""
    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    save_file(ready, path, metadata=METADATA)
