"""The prompt decoder, a group of side tensors: it maps a short vector to a prompt.

It is learnt on public tasks (:func:`offsite.learn_decoder`) and turns the vector of an intrinsic
prompt into the vectors before the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from offsite.errors import require
from offsite.model.tensors import TensorEntry

TENSORS = ("inner", "inner_bias", "outer", "outer_bias")


def decode(
    z: torch.Tensor,
    *,
    inner: torch.Tensor,
    inner_bias: torch.Tensor,
    outer: torch.Tensor,
    outer_bias: torch.Tensor,
) -> torch.Tensor:
    """``outer tanh(inner z + inner_bias) + outer_bias``: (..., dim) to (..., length, width).

    All tensors are float32, whatever dtype the model has.

    Args:
        z: the vectors of one prompt or several.
        inner: (hidden, dim), with ``inner_bias`` (hidden,).
        outer: (length, width, hidden), with ``outer_bias`` (length, width).
    """
    hidden = torch.tanh(z.float() @ inner.T + inner_bias)
    return torch.einsum("...h,lwh->...lw", hidden, outer) + outer_bias


def check_decoder(entries: Mapping[str, TensorEntry], model: Any = None) -> None:
    """Refuse tensors that do not form a decoder for the embeddings of ``model``.

    Args:
        entries: the tensors, as a manifest or a file declares them.
        model: the model that the decoder is for; None to check the tensors by themselves.

    Raises:
        OffsiteError: a model without an embedding table for tokens, such as an image model; tensors
            of other names, of shapes that do not fit each other, or of anything but float32.
    """
    shapes = {name: entry.shape for name, entry in entries.items()}
    inner, outer = shapes.get("inner", ()), shapes.get("outer", ())
    width = outer[1] if len(outer) == 3 else 0
    if model is not None:
        language = getattr(model, "main_input_name", None) == "input_ids"
        require(
            language,
            f"A prompt decoder works with a language model, and this is a {type(model).__name__}; "
            "leave --prompt-decoder out.",
        )
        width = model.get_input_embeddings().weight.shape[1]
    fits = (
        set(shapes) == set(TENSORS)
        and len(inner) == 2
        and len(outer) == 3
        and outer[1:] == (width, inner[0])
        and shapes["inner_bias"] == inner[:1]
        and shapes["outer_bias"] == outer[:2]
        and all(entry.dtype == "F32" for entry in entries.values())
    )
    require(
        fits,
        f"These tensors do not make a prompt decoder for embeddings of width {width}; use one that "
        "was learned with this model.",
    )
