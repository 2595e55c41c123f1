"""What augmentation does to pictures, and how it is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.errors import OffsiteError
from offsite.tasks import load_task
from offsite.tasks.data import rows_of
from offsite.tasks.image.augment import augment
from offsite.tasks.image.classification import ImageClassification
from tests.support.pictures import write_arrays

TASK = ImageClassification()


def test_augmentation_depends_on_the_batch_alone(tmp_path: Path, processor: Any) -> None:
    path = write_arrays(tmp_path)
    rows = rows_of(TASK, path, processor, None, train=True)
    batch = [rows[i] for i in (3, 1, 4)]
    torch.manual_seed(1)
    first = TASK.collate(batch)["pixel_values"]
    torch.manual_seed(2)
    assert torch.equal(first, TASK.collate(batch)["pixel_values"])
    assert not torch.equal(first, TASK.collate(batch[::-1])["pixel_values"].flip(0))
    plain = ImageClassification(augment=()).collate(batch)["pixel_values"]
    assert torch.equal(plain, torch.stack([row["pixel_values"] for row in batch]))
    scored = rows_of(TASK, path, processor, None)
    kept = TASK.collate([scored[0]])["pixel_values"][0]
    assert torch.equal(kept, scored[0]["pixel_values"])
    with pytest.raises(OffsiteError, match="not an augmentation"):
        ImageClassification(augment=("blur",))


def test_each_augmentation_does_what_it_says() -> None:
    images = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    flipped = augment(images, ("flip",), 0)
    same = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)]
    assert all(a or b for a, b in zip(same, mirrored, strict=True)) and 16 < sum(same) < 48
    cropped = augment(images, ("crop",), 0)
    assert cropped.shape == images.shape
    for new, old in zip(cropped, images, strict=True):
        inner = old[:, 4:12, 4:12]
        places = [(r, c) for r in range(2, 7) for c in range(2, 7)]
        assert any(torch.equal(new[:, r : r + 8, c : c + 8], inner) for r, c in places)
    coloured = augment(images, ("colour",), 0)
    assert not torch.equal(coloured, images)
    assert (coloured - images).abs().max() < 5 and augment(images, (), 0) is images


def test_augmentation_is_chosen_with_the_name_of_the_task() -> None:
    name = "image-classification"
    assert load_task(f"{name}:augment=none") == ImageClassification(augment=())
    chosen = load_task(f"{name}:augment=crop+colour", skip_bad=True)
    assert chosen == ImageClassification(("crop", "colour"), skip_bad=True)
    with pytest.raises(OffsiteError, match="'blur=3' is not an option of image-classification"):
        load_task(f"{name}:blur=3")
    with pytest.raises(OffsiteError, match="'tilt' is not an augmentation"):
        load_task(f"{name}:augment=flip+tilt")
