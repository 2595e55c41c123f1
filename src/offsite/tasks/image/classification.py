"""Image classification: labelled pictures, cross entropy, top-1 accuracy."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from offsite.errors import OffsiteError
from offsite.model.heads import labels_of, same_classes
from offsite.model.replay import forward
from offsite.tasks.image.augment import ALL, augment, check_kinds
from offsite.tasks.image.fitting import check_shapes, check_size
from offsite.tasks.image.pictures import Pictures, pillow, read_pictures, shown_names
from offsite.tasks.task import Evaluation, mean_of
from offsite.training.progress import track

MODES = {1: "L", 3: "RGB"}
DEEP = ("I", "I;16", "I;16B", "I;16L", "F")
CACHE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class ImageClassification:
    """Top-1 classification of pictures; see :mod:`~offsite.tasks.image.pictures` for what is read.

    Pictures are turned upright, converted to the model's number of channels (grey to colour,
    transparency dropped) and prepared by the model's own image processor.

    Attributes:
        augment: what is done at random to pictures that are tuned on: ``flip``, ``crop``,
            ``colour``, or nothing. It depends on which pictures share a batch in which order and
            so on the seed of training alone; a resumed run sees the same views.
        skip_bad: leave unreadable pictures out, with a warning, instead of refusing them.
    """

    augment: tuple[str, ...] = ALL
    skip_bad: bool = False

    name: ClassVar[str] = "image-classification"
    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_kinds(self.augment)

    def identity(self) -> dict[str, Any]:
        """Name, augmentation and what is left out; see :class:`~offsite.tasks.task.Task`."""
        return {"name": self.name, "augment": list(self.augment), "skip_bad": self.skip_bad}

    def load(
        self, source: str | Path, processor: Any, model: Any, *, train: bool = False
    ) -> ImageRows:
        """Read labelled pictures; see :class:`~offsite.tasks.task.Task`.

        The classes take the order of the model's own where they are the same ones; pictures to
        score on may show only some of these.

        Raises:
            OffsiteError: no image processor, an unreadable picture (its file is named), an empty
                class, a single class, or pictures whose size differs or does not fit the model.
        """
        if processor is None:
            raise OffsiteError(
                "The model has no image processor, so pictures cannot be read for it; put a "
                "preprocessor_config.json beside its weights."
            )
        pictures, sizes = self.readable(read_pictures(source, train=train))
        labels, order = match_classes(pictures.classes, labels_of(model), train=train)
        if len(labels) < 2:
            raise OffsiteError(
                f"'{source}' has the one class '{labels[0]}'; at least two are needed."
            )
        targets = tuple(order[target] for target in pictures.targets)
        channels = getattr(getattr(model, "config", None), "num_channels", 3)
        rows = ImageRows(pictures, targets, labels, processor, channels, train)
        check_shapes(rows, sizes)
        if isinstance(model, nn.Module):
            check_size(model, rows[0]["pixel_values"])
        return rows

    def readable(self, pictures: Pictures) -> tuple[Pictures, list[tuple[int, int]]]:
        """The pictures that can be decoded, and their sizes; every one is tried, so that no run
        stops midway.
        """
        good, bad, sizes = [], [], []
        for index in track(range(len(pictures.targets)), "reading pictures"):
            try:
                sizes.append(read_picture(pictures, index).size)
                good.append(index)
            except OffsiteError:
                if not self.skip_bad:
                    raise
                bad.append(pictures.where(index))
        if not bad:
            return pictures, sizes
        logging.getLogger("offsite").warning(
            "Skipped %d unreadable pictures, first %s.", len(bad), bad[0]
        )
        kept = pictures.select(good)
        if lost := sorted(set(pictures.targets) - set(kept.targets)):
            name = pictures.classes[lost[0]]
            raise OffsiteError(f"No picture of the class '{name}' is readable; replace them.")
        return kept, sizes

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Pictures (n, channels, height, width) and classes (n); augmented where rows say so."""
        images = torch.stack([row["pixel_values"] for row in rows])
        if self.augment and all("index" in row for row in rows):
            text = ",".join(str(row["index"]) for row in rows)
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
            images = augment(images, self.augment, seed)
        return {"pixel_values": images, "labels": torch.tensor([row["labels"] for row in rows])}

    def loss(
        self, model: nn.Module, batch: Mapping[str, Any], items: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean cross entropy in nats per picture.

        Raises:
            OffsiteError: a class that the model's head does not have.
        """
        losses = nn.functional.cross_entropy(
            class_scores(model, batch), batch["labels"], reduction="none"
        )
        return losses.sum() / (losses.numel() if items is None else items)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: Dataset[Any], *, batch_size: int = 64) -> Evaluation:
        """Share of pictures whose highest score is their class, with the mean loss beside it.

        Raises:
            OffsiteError: no picture, or a model made for other classes.
        """
        labels, own = getattr(data, "labels", ()), labels_of(model)
        if labels and not same_classes(own, labels):
            raise OffsiteError(
                f"The pictures show the classes {shown_names(labels)}, but the model knows "
                f"{shown_names(own)}; tune it to these classes first."
            )
        device = next(model.parameters()).device
        right: list[float] = []
        loss = 0.0
        model.eval()
        loader = DataLoader(data, batch_size=batch_size, collate_fn=self.collate)
        for batch in track(loader, "evaluating"):
            batch = {key: value.to(device) for key, value in batch.items()}
            scores = class_scores(model, batch)
            loss += nn.functional.cross_entropy(scores, batch["labels"], reduction="sum").item()
            right += (scores.argmax(-1) == batch["labels"]).double().tolist()
        if not right:
            raise OffsiteError("There is no picture to score on; give some with --eval-data.")
        return mean_of(self.metric, right, loss=loss / len(right))


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
        """One picture through the image processor, as float32 (channels, height, width)."""
        image = read_picture(self.pictures, index).convert(MODES.get(self.channels, "RGB"))
        try:
            pixels = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            raise OffsiteError(
                f"The image processor cannot take {self.pictures.where(index)} of {image.width} x "
                f"{image.height} pixels and mode {image.mode}; check its preprocessor_config.json."
            ) from error
        prepared: torch.Tensor = pixels.float()
        return prepared


def read_picture(pictures: Pictures, index: int) -> Any:
    """One picture, decoded and turned upright.

    Raises:
        OffsiteError: it is no picture, damaged, absurdly large, or has more than 8 bits a channel.
    """
    pillow()
    from PIL import ImageOps

    try:
        image = ImageOps.exif_transpose(pictures.read(index))
    except Exception:  # each format's reader raises what it likes; None is a missing picture
        raise OffsiteError(
            f"Cannot read {pictures.where(index)} as a picture; repair or remove it, or leave such "
            "pictures out with --skip-bad."
        ) from None
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
    """
    own = set(names) == set(present) or (not train and set(names) <= set(present))
    if own:
        return tuple(present), tuple(present.index(name) for name in names)
    return tuple(names), tuple(range(len(names)))


def class_scores(model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Logits (n, classes) in float32, checked against the classes of the batch."""
    logits: torch.Tensor = forward(model, batch).logits.float()
    if int(batch["labels"].max()) >= logits.shape[-1]:
        raise OffsiteError(
            f"The pictures have a class number {int(batch['labels'].max())}, but the model's head "
            f"has only {logits.shape[-1]} classes; tune with data of the model's classes, or "
            "distil with lm_weight=0."
        )
    return logits
