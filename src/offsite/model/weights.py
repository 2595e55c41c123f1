"""The weight files of a checkpoint: which ones transformers reads, and what their headers say.

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
from offsite.files import read_json, shown
from offsite.model.tensors import TORCH

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
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: where it is, its shape, and its dtype as safetensors writes it."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


def other_format(name: str | Path) -> str | None:
    """What to do with a model whose weights are in another format; None where there is no such.

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
        OffsiteError: there are none, another format stands in their place, or a shard is missing.
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
    if reason := other_format(name):
        raise OffsiteError(reason)
    raise OffsiteError(
        f"'{name}' has no safetensors weights; put a {SAFE_WEIGHTS_NAME} there, or its shards "
        f"with {SAFE_WEIGHTS_INDEX_NAME}."
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
            raise OffsiteError(f"The shards of '{name}' could not be fetched.") from error
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
            with file.open("rb") as raw:
                if raw.read(len(LFS)) == LFS:
                    raise OffsiteError(
                        f"'{file}' is a Git LFS pointer and not the weights; run 'git lfs pull'."
                    ) from error
            raise OffsiteError(
                f"'{file}' is not a complete safetensors file; download it again."
            ) from error
    if not found:
        raise OffsiteError(f"The weight files {', '.join(map(str, files))} hold no tensor.")
    return found


def check_unquantised(name: str | Path, config: Any) -> None:
    """Refuse a model whose configuration says that its weights are quantised.

    Raises:
        OffsiteError: naming the quantisation.
    """
    said = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if said:
        said = said if isinstance(said, dict) else said.to_dict()
        method = said.get("quant_method") or "of an unnamed kind"
        raise OffsiteError(
            f"The weights of '{name}' are quantised ({shown(method)}); offsite cuts floating-point "
            "weights only, so use the original checkpoint, or load this one with transformers, "
            "call dequantize() and write it again with save_pretrained."
        )


def quantised(tensor: StoredTensor) -> OffsiteError:
    """The refusal of a tensor that is not stored as floating-point numbers of 16 bits or more."""
    kind = {"F8": "float8", "F4": "float4", "F6": "float6"}.get(tensor.dtype[:2], tensor.dtype)
    return OffsiteError(
        f"The tensor '{shown(tensor.key)}' of '{tensor.file}' is quantised (stored as {kind}); "
        "offsite cuts floating-point weights only, so use the original checkpoint or a dequantised "
        "copy."
    )
