"""Augmentation of image batches by plain tensor operations: flip, crop, colour.

All of it works on normalised values, and every choice comes from a generator that the caller
seeds, so a batch is augmented the same way whenever it is seen again.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from offsite.errors import OffsiteError

ALL = ("flip", "crop", "colour")
PAD = 8  # a crop moves a picture by up to one eighth of its side
COLOUR = 0.3


def kinds_of(choice: str) -> tuple[str, ...]:
    """The kinds that ``augment=flip+crop`` names: all for an empty text, none for ``augment=none``.

    Raises:
        OffsiteError: another option than ``augment``.
    """
    if not choice:
        return ALL
    key, _, names = choice.partition("=")
    if key != "augment":
        raise OffsiteError(
            f"'{choice}' is not an option of image-classification; write augment=none, or some "
            f"of augment={'+'.join(ALL)}."
        )
    return () if names == "none" else tuple(names.split("+"))


def check_kinds(kinds: tuple[str, ...]) -> None:
    """Refuse an unknown augmentation."""
    if odd := set(kinds) - set(ALL):
        raise OffsiteError(
            f"'{sorted(odd)[0]}' is not an augmentation; use flip, crop, colour or none of them."
        )


def augment(images: torch.Tensor, kinds: tuple[str, ...], seed: int) -> torch.Tensor:
    """New views of a batch (n, channels, height, width) of normalised pictures."""
    generator = torch.Generator().manual_seed(seed)
    if "flip" in kinds:
        images = flip(images, generator)
    if "crop" in kinds:
        images = crop(images, generator)
    if "colour" in kinds:
        images = colour(images, generator)
    return images


def flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each picture left to right with probability one half."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, images.flip(-1), images)


def crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Reflect the border by an eighth of the side and cut the old size out at a random place."""
    height, width = images.shape[-2:]
    down, across = height // PAD, width // PAD
    padded = functional.pad(images, (across, across, down, down), mode="reflect")
    rows = torch.randint(2 * down + 1, (len(images),), generator=generator).tolist()
    columns = torch.randint(2 * across + 1, (len(images),), generator=generator).tolist()
    return torch.stack(
        [
            image[:, row : row + height, column : column + width]
            for image, row, column in zip(padded, rows, columns, strict=True)
        ]
    )


def colour(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Change contrast, saturation and brightness of each picture by up to 30%.

    Contrast and saturation scale the distance from the picture's mean and from its grey version;
    brightness adds a constant, in standard deviations of the data, as the values are normalised.
    """
    contrast, saturation, brightness = (
        COLOUR * (2 * torch.rand(3, len(images), 1, 1, 1, generator=generator) - 1)
    ).unbind()
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (1 + contrast)
    grey = images.mean(1, keepdim=True)
    return grey + (images - grey) * (1 + saturation) + brightness
