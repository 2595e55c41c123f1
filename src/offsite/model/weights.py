"""The weight files of a checkpoint: those that transformers reads, and their headers.

A single ``model.safetensors`` comes before an index of shards, and of two shards with a tensor of
one name the later counts, as in transformers. Formats that offsite does not read are refused by
their name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from offsite.errors import OffsiteError
from offsite.files import POINTER, read_json, shown
from offsite.model.kind import text_config
from offsite.model.tensors import TORCH

DTYPES = ("float32", "bfloat16", "float16")
FLOATS = {name: dtype for name, dtype in TORCH.items() if dtype.is_floating_point}
OTHER_FORMATS = {
    ".gguf": "GGUF",
    ".bin": "PyTorch's .bin format",
    ".pth": "PyTorch's .pth format",
    ".pt": "PyTorch's .pt format",
    ".ckpt": "the .ckpt format",
    ".h5": "TensorFlow's .h5 format",
    ".msgpack": "Flax's .msgpack format",
    ".npz": "MLX's .npz format",
    ".onnx": "the ONNX format",
}
CONVERT = "load it with transformers and write it again with save_pretrained"
STARTS = {
    POINTER: "a Git LFS pointer and not the weights; run 'git lfs pull'",
    b"GGUF": "in GGUF under another name; convert it to safetensors first",
    b"PK\x03\x04": "a zip archive, as PyTorch writes its own format; convert it to safetensors",
    b"\x80": "a pickle, which offsite does not read; convert it to safetensors first",
    b"<": "a web page and not the weights; sign in and download it again",
}
PYTORCH_INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: where it is, its shape, and its dtype as safetensors writes it."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


def other_format(name: str | Path) -> str | None:
    """What to do with a model whose weights are in another format; None if there is none.

    Args:
        name: a folder, or the path of one file.
    """
    path = Path(name)
    found = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    for file in found:
        if format_ := OTHER_FORMATS.get(file.suffix):
            how = " (gguf_file=...)" if file.suffix == ".gguf" else ""
            return (
                f"'{file}' is in {format_}, which offsite does not read; convert it to safetensors "
                f"first: {CONVERT}{how}."
            )
    return None


def weight_files(name: str | Path, config: Any = None) -> list[Path]:
    """The safetensors files of a folder or hub model, in the order transformers reads them.

    Raises:
        OffsiteError: there are none, they have another format, or a shard is missing.
    """
    own = getattr(config, "transformers_weights", None)
    if own is not None and Path(str(own)).name != own:
        raise OffsiteError(
            f"The config.json of '{name}' names weights in another folder ('{shown(own)}'); put "
            "the file beside it."
        )
    for file in [str(own)] if own else [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]:
        try:
            found = cached_file(str(name), file, _raise_exceptions_for_missing_entries=False)
        except OSError:
            found = None
        if found:
            return shards(name, Path(found)) if file.endswith(".json") else [Path(found)]
    raise OffsiteError(
        other_format(name)
        or other_name(name)
        or f"'{name}' has no safetensors weights; put a {SAFE_WEIGHTS_NAME} there, or its shards "
        f"with {SAFE_WEIGHTS_INDEX_NAME}."
    )


def other_name(name: str | Path) -> str | None:
    """What to do with safetensors that transformers does not look for; None if there are none.

    Args:
        name: a folder, or a hub name.
    """
    path = Path(name)
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if (path / PYTORCH_INDEX).is_file():
        return (
            f"'{path / PYTORCH_INDEX}' names weights in PyTorch's .bin format, which are not there "
            "and which offsite does not read; download the model in safetensors."
        )
    if not found:
        return None
    return (
        f"'{path}' holds '{found[0].name}', but transformers reads {SAFE_WEIGHTS_NAME}, or shards "
        f"that {SAFE_WEIGHTS_INDEX_NAME} names; rename it, or fetch the index of its shards."
    )


def shards(name: str | Path, index: Path) -> list[Path]:
    """The files that an index of shards names.

    Raises:
        OffsiteError: an index of another form, or a shard that is not there.
    """
    content = read_json(index)
    where = content.get("weight_map") if isinstance(content, dict) else None
    names = sorted({str(file) for file in where.values()}) if isinstance(where, dict) else []
    if not names or any(Path(file).name != file for file in names):
        raise OffsiteError(f"'{index}' does not name the shards of a model; download it again.")
    if not Path(name).is_dir():
        try:
            return [Path(file) for file in get_checkpoint_shard_files(str(name), str(index))[0]]
        except OSError as error:
            raise OffsiteError(
                f"The shards of '{name}' could not be fetched; check the network and try again."
            ) from error
    for file in names:
        if not (index.parent / file).is_file():
            raise OffsiteError(
                f"'{index.parent / file}' is missing; its index '{index.name}' names "
                f"{len(names)} files, so download the model again."
            )
    return [index.parent / file for file in names]


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every tensor of some files by its name there; no tensor is read.

    Raises:
        OffsiteError: a file that is damaged, incomplete or was never downloaded.
    """
    found: dict[str, StoredTensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (not a dictionary)
                    part = opened.get_slice(key)
                    shape, dtype = tuple(part.get_shape()), str(part.get_dtype())
                    found[key] = StoredTensor(file, key, shape, dtype)
        except (SafetensorError, OSError) as error:
            raise OffsiteError(f"'{file}' is {damaged(file)}.") from error
    if not found:
        raise OffsiteError(
            f"The weight files {', '.join(map(str, files))} hold no tensor; download the model "
            "again."
        )
    return found


def damaged(file: Path) -> str:
    """What a file is that cannot be read as safetensors, and what to do."""
    with file.open("rb") as raw:
        start = raw.read(32).lstrip()
    kinds = (kind for begin, kind in STARTS.items() if start.startswith(begin))
    return next(kinds, "not a complete safetensors file; download it again")


def check_unquantised(name: str | Path, config: Any) -> None:
    """Refuse a model whose configuration says that its weights are quantised.

    Raises:
        OffsiteError: naming the quantisation, or a dtype that implies one.
    """
    for part in (config, text_config(config)):
        said = getattr(part, "quantization_config", None)
        if said is None:
            continue
        said = said if isinstance(said, dict) else said.to_dict()
        old = "load_in_4bit" in said or "load_in_8bit" in said  # written before it had a name
        method = said.get("quant_method") or ("bitsandbytes" if old else "of an unnamed kind")
        raise OffsiteError(
            f"The weights of '{name}' are quantised ({shown(method)}), as its config.json says; "
            "offsite cuts floating-point weights only, so use the original checkpoint, or load "
            "this one with transformers, call dequantize() and write it again with save_pretrained "
            "(if that was done, remove quantization_config from the file)."
        )
    dtype = getattr(config, "dtype", None)
    if dtype is not None and dtype not in FLOATS.values():
        raise OffsiteError(
            f"The config.json of '{name}' names the dtype '{shown(dtype).removeprefix('torch.')}', "
            f"which no model is loaded in; write one of {', '.join(DTYPES)}."
        )


def quantised(tensor: StoredTensor) -> OffsiteError:
    """The refusal of a tensor that is not stored as floating-point numbers of 16 bits or more."""
    kind = {"F8": "float8", "F4": "float4", "F6": "float6"}.get(tensor.dtype[:2], tensor.dtype)
    return OffsiteError(
        f"The tensor '{shown(tensor.key)}' of '{tensor.file}' is quantised (stored as {kind}); "
        "offsite cuts floating-point weights only, so use the original checkpoint or a dequantised "
        "copy."
    )
