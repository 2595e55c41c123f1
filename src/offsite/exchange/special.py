"""Offers with layers of the allow-list or shared blocks: their tensors, and their model again."""

from __future__ import annotations

from typing import Any

import transformers
from accelerate import init_empty_weights
from transformers.initialization import no_init_weights

from offsite.errors import OffsiteError
from offsite.exchange.manifest import OfferManifest
from offsite.model import surgery
from offsite.model.blocks import block_path
from offsite.model.checkpoint import quiet


def unique_tensors(model: Any, shared: dict[int, int]) -> dict[str, Any]:
    """The state of a model with tied and shared tensors once, under their first name."""
    path, seen, tensors = block_path(model), set(), {}
    prefixes = tuple(f"{path}.{index}." for index in shared)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and not (prefixes and name.startswith(prefixes)):
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def build_special(
    config: Any, manifest: OfferManifest, auto_class: str, tensors: dict[str, Any]
) -> Any:
    """Build the family's model, put allow-listed layers in, and fill every tensor.

    Parameters exist on the meta device until they are filled, so a layer that is replaced costs
    nothing.

    Raises:
        OffsiteError: the tensors do not fill the model exactly.
    """
    with quiet(), no_init_weights(), init_empty_weights(include_buffers=False):
        model = getattr(transformers, auto_class).from_config(config)
    surgery.rebuild(model, manifest.layers)
    try:
        _, extra = model.load_state_dict(tensors, strict=False, assign=True)
        surgery.share(model, manifest.shared)
    except (RuntimeError, AttributeError) as error:
        raise OffsiteError(
            "The tensors of the offer do not fit its layers; ask for a fresh copy."
        ) from error
    model.tie_weights()
    empty = [name for name, tensor in model.state_dict(keep_vars=True).items() if tensor.is_meta]
    if odd := [*empty, *extra]:
        raise OffsiteError(
            f"The tensors of the offer do not fill its model; the first odd one is '{odd[0]}', so "
            "ask for a fresh copy."
        )
    return model.eval()
