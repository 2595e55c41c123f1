"""Coloured pictures to tell apart, as arrays and as folders, and what prepares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from tests.support.models import SIZE

NAMES = ("red", "green", "yellow")


def logits(model: Any) -> torch.Tensor:
    """What a model says about two fixed random pictures."""
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: torch.Tensor = model(pixel_values=pixels).logits
    return found


def paint(classes: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures whose mean colour tells their class: uint8 (n, 20, 24, 3) and (n)."""
    random = np.random.default_rng(seed)
    y = np.arange(classes * count) % classes
    x = random.integers(0, 120, (len(y), 20, 24, 3))
    for channel in range(3):
        x[..., channel] += (120 * ((y + 1) >> channel & 1))[:, None, None]
    return x.astype(np.uint8), y


def write_arrays(folder: Path) -> Path:
    """An ``.npz`` file of three named classes, 8 pictures each to tune on and 4 to score on."""
    train_x, train_y = paint(3, 8, 0)
    test_x, test_y = paint(3, 4, 1)
    parts: dict[str, Any] = {
        "train_x": train_x,
        "train_y": train_y,
        "test_x": test_x,
        "test_y": test_y,
    }
    np.savez(folder / "colours.npz", **parts, labels=np.array(NAMES))
    return folder / "colours.npz"


def write_folder(folder: Path) -> Path:
    """The same kind of pictures as one folder per class, four in each."""
    x, y = paint(3, 4, 0)
    for index, (pixels, target) in enumerate(zip(x, y, strict=True)):
        inside = folder / "pictures" / NAMES[target]
        inside.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(inside / f"{index}.png")
    return folder / "pictures"


def image_processor(**options: Any) -> Any:
    """A ViT image processor for pictures of 16 x 16."""
    size = {"height": SIZE, "width": SIZE}
    return transformers.ViTImageProcessor(**{"size": size, **options})


def picture_folders(root: Path, *splits: str) -> Path:
    """Two classes of two pictures under each split."""
    for split in splits:
        for shade, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(2):
                picture = Image.new("RGB", (20, 24), (90 * shade, 40 * index, len(split)))
                picture.save(root / split / name / f"{index}.png")
    return root
