"""Pictures as rows: decoded, converted to the model's channels and prepared by its processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import Dataset

from offsite.errors import OffsiteError
from offsite.model.heads import repeated
from offsite.tasks.image.pictures import Pictures, pillow

MODES = {1: "L", 3: "RGB"}
DEEP = ("I", "I;16", "I;16B", "I;16L", "F")
CACHE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Readable:
    """Pictures that can all be decoded, with the width and height of each, and their source."""

    pictures: Pictures
    sizes: Sequence[tuple[int, int]]
    source: str


@dataclass
class ImageRows(Dataset[Any]):
    """Pictures as rows: ``pixel_values`` (channels, height, width), ``labels`` (a class index).

    Rows to tune on also have their ``index``, which :meth:`ImageClassification.collate` takes as
    leave to augment. Prepared pictures are kept in memory up to 2 GiB.

    Attributes:
        targets: for each picture, the index of its class in ``labels``.
        labels: names of the classes, in the order of the model's outputs.
    """

    pictures: Pictures
    targets: tuple[int, ...]
    labels: tuple[str, ...]
    processor: Any
    channels: int = 3
    train: bool = False
    kept: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.kept.get(index)
        if pixels is None:
            pixels = self.prepare(index)
            if (len(self.kept) + 1) * pixels.numel() * pixels.element_size() <= CACHE_BYTES:
                self.kept[index] = pixels
        row = {"pixel_values": pixels, "labels": self.targets[index]}
        return {**row, "index": index} if self.train else row

    def prepare(self, index: int) -> torch.Tensor:
        """One picture through the image processor, as float32 (channels, height, width).

        Raises:
            OffsiteError: the processor cannot take it, or gives something else than its pixels.
        """
        image = read_picture(self.pictures, index).convert(MODES.get(self.channels, "RGB"))
        try:
            found = self.processor(images=image, return_tensors="pt")
            prepared: torch.Tensor = found["pixel_values"][0].float()
        except KeyError as error:
            raise OffsiteError(
                f"The image processor {type(self.processor).__name__} gives {', '.join(found)} and "
                "not pixel_values; offsite needs a model that reads pixels."
            ) from error
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            raise OffsiteError(
                f"The image processor cannot take {self.pictures.where(index)} of {image.width} x "
                f"{image.height} pixels and mode {image.mode}; check its preprocessor_config.json."
            ) from error
        if prepared.ndim != 3:
            raise OffsiteError(
                f"The image processor {type(self.processor).__name__} gives a picture the shape "
                f"{list(prepared.shape)}; offsite needs a model that reads whole pictures of shape "
                "(channels, height, width)."
            )
        return prepared


def read_picture(pictures: Pictures, index: int) -> Any:
    """One picture, decoded and turned upright.

    Cameras put a preview behind a picture, in the format MPO; such a file counts as one picture.

    Raises:
        OffsiteError: it is not a picture, damaged, absurdly large, one of several in its file, or
            has more than 8 bits a channel.
    """
    pillow()
    from PIL import ImageOps

    try:
        opened = pictures.read(index)
        frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
        image = ImageOps.exif_transpose(opened)
    except Exception:  # each format's reader raises what it likes; None is a missing picture
        raise OffsiteError(
            f"Cannot read {pictures.where(index)} as a picture; repair or remove it, or leave such "
            "pictures out with --skip-bad."
        ) from None
    if frames > 1:
        raise OffsiteError(
            f"{pictures.where(index)} holds {frames} pictures; save the one that is meant as a "
            "file of its own, or leave such files out with --skip-bad."
        )
    if image.mode in DEEP:
        raise OffsiteError(
            f"{pictures.where(index)} has more than 8 bits per channel (mode {image.mode}); "
            "convert it to 8 bits first, or leave such pictures out with --skip-bad."
        )
    return image


def match_classes(
    names: Sequence[str], present: Sequence[str], *, train: bool
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The classes of some data in the order of a model's outputs, where they are the model's own.

    Args:
        names: classes of the data, in its order.
        present: classes of the model.
        train: whether the model will be tuned to exactly these classes; else a part will do.

    Returns:
        Names of the outputs, and for each of ``names`` its index among them.

    Raises:
        OffsiteError: two classes of the model have the name of a class to score on.
    """
    twice = repeated(present) & set(names)
    if twice and not train:
        raise OffsiteError(
            f"The model has two classes called '{min(twice)}', so a picture has two answers; "
            "give each class of 'id2label' in the model's config.json a name of its own."
        )
    own = sorted(names) == sorted(present) or (not train and set(names) <= set(present))
    if own:
        return tuple(present), tuple(present.index(name) for name in names)
    return tuple(names), tuple(range(len(names)))
