"""The prompt decoder an owner may ship beside a model: a few numbers in, a prompt out.

It is learnt on public tasks (:func:`offsite.learn_decoder`), stands in one safetensors file
of an offer, and turns the numbers of an intrinsic prompt into the vectors before the tokens.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offsite.codec import require
from offsite.files import check_free, writing
from offsite.model.tensors import TensorEntry, describe, load_tensors, read_header, save_tensors

DECODER = "prompt_decoder.safetensors"
Decoder = Mapping[str, torch.Tensor] | str | Path
TENSORS = ("inner", "inner_bias", "outer", "outer_bias")


class PromptDecoder(nn.Module):
    """``outer tanh(inner z + inner_bias) + outer_bias``: (..., dim) to (..., length, width).

    Its tensors are float32 buffers that no checkpoint of the model contains, whatever dtype the
    model has: ``inner`` (hidden, dim), ``outer`` (length, width, hidden) and their biases.
    """

    inner: torch.Tensor
    inner_bias: torch.Tensor
    outer: torch.Tensor
    outer_bias: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name in TENSORS:
            self.register_buffer(name, tensors[name].detach().float(), persistent=False)

    @property
    def dim(self) -> int:
        """How many numbers make a prompt."""
        return self.inner.shape[1]

    @property
    def length(self) -> int:
        """How many vectors a prompt has."""
        return self.outer.shape[0]

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return decode(z, self.inner, self.inner_bias, self.outer, self.outer_bias)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What an offer ships of it."""
        return {name: self.get_buffer(name) for name in TENSORS}

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> PromptDecoder:
        device = fn(self.inner[:0]).device  # the model may change its dtype, the decoder does not
        super()._apply(lambda tensor: tensor.to(device), recurse)  # type: ignore[no-untyped-call]
        return self


def decode(
    z: torch.Tensor,
    inner: torch.Tensor,
    inner_bias: torch.Tensor,
    outer: torch.Tensor,
    outer_bias: torch.Tensor,
) -> torch.Tensor:
    """The arithmetic of :class:`PromptDecoder`."""
    hidden = torch.tanh(z.float() @ inner.T + inner_bias)
    return torch.einsum("...h,lwh->...lw", hidden, outer) + outer_bias


def width_table(model: Any) -> torch.Tensor:
    """The embedding table (tokens, width) of a language model.

    Raises:
        OffsiteError: a model without one, such as an image model.
    """
    language = getattr(model, "main_input_name", None) == "input_ids"
    require(language, f"A prompt decoder is for language models, not {type(model).__name__}.")
    table: torch.Tensor = model.get_input_embeddings().weight
    return table


def check_decoder(entries: Mapping[str, TensorEntry], width: int) -> None:
    """Refuse tensors that do not form a decoder for embeddings of ``width``.

    Raises:
        OffsiteError: other names, shapes that do not fit each other, or anything but float32.
    """
    shapes = {name: entry.shape for name, entry in entries.items()}
    inner, outer = shapes.get("inner", ()), shapes.get("outer", ())
    fits = (
        set(shapes) == set(TENSORS)
        and len(inner) == 2
        and len(outer) == 3
        and outer[1:] == (width, inner[0])
        and shapes["inner_bias"] == inner[:1]
        and shapes["outer_bias"] == outer[:2]
        and all(entry.dtype == "F32" for entry in entries.values())
    )
    require(fits, f"These tensors do not make a prompt decoder for embeddings of width {width}.")


def give_decoder(model: Any, decoder: Decoder) -> None:
    """Put a decoder beside a model's weights, where an intrinsic prompt looks for it.

    Args:
        decoder: its tensors, or a path for :func:`read_decoder`.

    Raises:
        OffsiteError: no language model, or tensors that do not form a decoder for this one.
    """
    tensors = read_decoder(decoder) if isinstance(decoder, (str, Path)) else decoder
    table = width_table(model)
    check_decoder(describe(tensors), table.shape[1])
    model.prompt_decoder = PromptDecoder(tensors).to(table.device)


def decoder_of(model: Any) -> PromptDecoder | None:
    """The decoder beside a model's weights, or None."""
    found = getattr(model, "prompt_decoder", None)
    return found if isinstance(found, PromptDecoder) else None


def decoder_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of the decoder beside a model's weights; empty where there is none."""
    found = decoder_of(model)
    return {} if found is None else found.tensors()


def decoder_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names, shapes and values of a decoder's tensors (float32)."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_decoder(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a decoder as one safetensors file, which appears complete or not at all.

    Raises:
        OffsiteError: it exists, or cannot be written.
    """
    check_free(path)
    with writing(path), tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        save_tensors(tensors, Path(scratch) / DECODER)
        os.rename(Path(scratch) / DECODER, path)
        path.chmod(0o644)  # safetensors writes 0600, and the file is to be read by others


def read_decoder(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a decoder's file: one that was learnt, or the one in an offer.

    Raises:
        OffsiteError: no such file, or no decoder of finite float32 numbers.
    """
    path = Path(path)
    path = path / DECODER if path.is_dir() else path
    require(
        path.is_file(),
        f"There is no prompt decoder '{path}'; make one with: offsite prompt-decoder.",
    )
    entries = read_header(path)
    outer = entries["outer"].shape if "outer" in entries else ()
    check_decoder(entries, outer[1] if len(outer) == 3 else 0)
    return load_tensors([path], entries)
