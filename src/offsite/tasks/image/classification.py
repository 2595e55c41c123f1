"""Image classification: labelled pictures, cross entropy, top-1 accuracy."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from offsite.errors import OffsiteError
from offsite.model.heads import labels_of, same_classes
from offsite.model.replay import forward
from offsite.tasks.data import rows_of
from offsite.tasks.image.augment import ALL, augment, check_kinds
from offsite.tasks.image.pictures import Pictures, read_pictures, shown_names
from offsite.tasks.image.rows import ImageRows, Readable, match_classes, read_picture
from offsite.tasks.image.shapes import channels_of, check_shapes, check_size
from offsite.tasks.task import Evaluation, HarnessForm, has_probabilities, mean_of, no_harness
from offsite.training.progress import track


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
    max_length: ClassVar[int | None] = None
    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_kinds(self.augment)

    def identity(self) -> dict[str, Any]:
        """Name, augmentation and what is left out; see :class:`~offsite.tasks.task.Task`."""
        return {"name": self.name, "augment": list(self.augment), "skip_bad": self.skip_bad}

    def one_by_one(self) -> ImageClassification:
        """This task without augmentation; see :class:`~offsite.tasks.task.Task`.

        The view of a picture depends on the batch, and so on other examples.
        """
        return replace(self, augment=())

    def default_source(self, split: str) -> Path | None:
        """None: no file names data; see :class:`~offsite.tasks.task.Task`."""
        return None

    def read(self, source: str | Path, *, train: bool = False) -> Readable:
        """Open a source and try every picture; see :class:`~offsite.tasks.task.Task`.

        Raises:
            OffsiteError: an unreadable picture (its file is named), an empty class, or a single
                class.
        """
        pictures, sizes = self.readable(read_pictures(source, train=train))
        if train and len(pictures.classes) < 2:
            raise OffsiteError(
                f"'{source}' has the one class '{pictures.classes[0]}'; at least two are needed."
            )
        return Readable(pictures, sizes, str(source))

    def prepare(self, documents: Readable, processor: Any, config: Any) -> ImageRows:
        """Pictures as the model's processor prepares them; see :class:`~offsite.tasks.task.Task`.

        Raises:
            OffsiteError: no image processor, a model of other channels than 1 or 3, or pictures
                that it gives different sizes.
        """
        if processor is None:
            raise OffsiteError(
                "The model has no image processor, so pictures cannot be read for it; put a "
                "preprocessor_config.json beside its weights."
            )
        channels, pictures = channels_of(config), documents.pictures
        rows = ImageRows(pictures, pictures.targets, pictures.classes, processor, channels)
        check_shapes(rows, documents.sizes)
        return rows

    def rows(self, prepared: ImageRows, model: nn.Module, *, train: bool = False) -> ImageRows:
        """Rows for one model; see :class:`~offsite.tasks.task.Task`.

        The classes take the order of the model's own where they are the same ones; pictures to
        score on may show only some of these.

        Raises:
            OffsiteError: a single class, or pictures whose size does not fit the model.
        """
        pictures = prepared.pictures
        labels, order = match_classes(pictures.classes, labels_of(model), train=train)
        if len(labels) < 2:
            raise OffsiteError(
                f"The pictures show the one class '{labels[0]}'; at least two are needed."
            )
        targets = tuple(order[target] for target in pictures.targets)
        rows = replace(prepared, targets=targets, labels=labels, train=train)
        if isinstance(model, nn.Module):
            check_size(model, rows[0]["pixel_values"])
        return rows

    def load(
        self, source: str | Path, processor: Any, model: Any, *, train: bool = False
    ) -> ImageRows:
        """All three stages at once; see :class:`~offsite.tasks.task.Task`."""
        loaded: ImageRows = rows_of(self, source, processor, model, train=train)
        return loaded

    def labels(self, rows: Any) -> tuple[str, ...]:
        """Names of the classes of rows; see :class:`~offsite.tasks.task.Task`."""
        return rows.labels if isinstance(rows, ImageRows) else ()

    def readable(self, pictures: Pictures) -> tuple[Pictures, list[tuple[int, int]]]:
        """The pictures that can be decoded, and their sizes.

        Every one is tried, so that no run stops midway.
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

    def harness(self, documents: Readable) -> HarnessForm:
        """Always refused; see :class:`~offsite.tasks.task.Task`."""
        raise no_harness(self.name)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: Dataset[Any], *, batch_size: int = 64) -> Evaluation:
        """Share of pictures whose highest score is their class, and the mean loss.

        Raises:
            OffsiteError: no picture, or a model made for other classes.
        """
        labels, own = self.labels(data), labels_of(model)
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
            hits = (scores.argmax(-1) == batch["labels"]).double()
            right += hits.masked_fill(~has_probabilities(scores), math.nan).tolist()
        if not right:
            raise OffsiteError("There is no picture to score on; give some with --eval-data.")
        return mean_of(self.metric, right, loss=loss / len(right))


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
