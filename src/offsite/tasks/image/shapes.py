"""Check that prepared pictures have one shape, and that the model can embed it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from offsite.errors import OffsiteError
from offsite.model.blocks import get_blocks
from offsite.model.heads import head_path, no_head
from offsite.tasks.image.pictures import Pictures, pillow
from offsite.tasks.image.rows import MODES, ImageRows


def check_shapes(rows: Any, sizes: Sequence[tuple[int, int]]) -> None:
    """Prepare the smallest, largest, widest and tallest pictures and compare their shapes.

    Args:
        rows: the :class:`~offsite.tasks.image.classification.ImageRows`.
        sizes: width and height of each picture.

    Raises:
        OffsiteError: the shapes differ, so that such pictures cannot share a batch.
    """
    measures = [(width, height, width / height) for width, height in sizes]
    places = range(len(sizes))
    chosen = {
        pick(places, key=lambda index: measures[index][axis])
        for axis in range(3)
        for pick in (min, max)
    }
    found = {tuple(rows[index]["pixel_values"].shape): index for index in sorted(chosen)}
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise OffsiteError(
            f"The image processor gives {rows.pictures.where(first)} the shape {list(one)} and "
            f"{rows.pictures.where(second)} the shape {list(other)}; turn on do_resize in its "
            "preprocessor_config.json with a height and a width, or bring the pictures to one size."
        )


def channels_of(config: Any) -> int:
    """How many channels a model reads.

    Raises:
        OffsiteError: other than 1 or 3.
    """
    channels = getattr(config, "num_channels", None) or 3
    if channels not in MODES:
        raise OffsiteError(
            f"The model reads pictures of {channels} channels, but pictures are read here as "
            "grey (1 channel) or colour (3 channels); use a model of 1 or 3 channels."
        )
    return int(channels)


def check_model(model: nn.Module, processor: Any) -> None:
    """Send a grey square through an image processor and up to the first block of its model.

    Raises:
        OffsiteError: no picture can be given to this model, or it has no head to tune.
    """
    square = pillow().new("RGB", (64, 64), (128, 128, 128))
    one = Pictures(("grey",), (0,), lambda index: square, lambda index: "a test picture")
    channels = channels_of(getattr(model, "config", None))
    check_size(model, ImageRows(one, (0,), ("grey",), processor, channels).prepare(0))
    if head_path(model) is None:
        raise no_head(model)


class _Fits(Exception):
    """A picture has reached the first block."""


@torch.no_grad()
def check_size(model: nn.Module, pixels: torch.Tensor) -> None:
    """Send one picture (channels, height, width) up to the first block of an image model.

    Raises:
        OffsiteError: the model cannot embed pictures of this size.
    """

    def reached(*_: Any) -> None:
        raise _Fits

    weight = next(model.parameters())
    handle = get_blocks(model)[0].register_forward_pre_hook(reached)
    try:
        model(pixel_values=pixels[None].to(weight.device, weight.dtype))
    except _Fits:
        return
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise OffsiteError(
            f"The image processor gives pictures of shape {list(pixels.shape)}, which the model "
            "cannot embed; set the size in its preprocessor_config.json to that of the model."
        ) from error
    finally:
        handle.remove()
