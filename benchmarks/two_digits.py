"""Pictures of two-digit numbers, drawn from MNIST digits: as many as one likes, none twice.

Two digits, each turned, sheared and scaled at random, stand side by side on 28x28 pixels, with
fragments of other digits strewn around them, at a random brightness and under noise. A classifier
of 50 numbers is never done learning from them, which makes every block of it count; from 5,000
photographs a vision transformer of 12 blocks learns so little that half of them can go.

Numbers whose digits have an even sum are the model owner's, the other 50 the data owner's, who
also writes with a broader pen (:func:`broaden`). Of every digit's training images the owner has
the first 80% and the data owner the rest; both are scored on drawings of the test images.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 28
OWNERS = [n for n in range(100) if (n // 10 + n % 10) % 2 == 0]
PRIVATE = [n for n in range(100) if n not in OWNERS]
OWNER_SHARE = 0.8
FRAGMENTS = 4
NOISE = 0.15
BROADER = 0.7  # how far the private pictures go towards those of the broader pen
COUNTS = {"train": 4000, "test": 5000}


class Digits:
    """Images of single digits by class, on one device, to draw from at random."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, device: str = "cpu") -> None:
        order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels, minlength=10)
        self.images = torch.from_numpy(images[order]).to(device).unsqueeze(1) / 255
        self.counts = torch.from_numpy(counts).to(device)
        self.first = torch.from_numpy(np.cumsum(counts) - counts).to(device)

    def pick(self, digits: Tensor) -> Tensor:
        """One image (1, 28, 28) of each digit (n)."""
        counts = self.counts[digits]
        index = (torch.rand(len(digits), device=digits.device) * counts).long()
        return self.images[self.first[digits] + torch.minimum(index, counts - 1)]

    @classmethod
    def read(cls, path: Path, party: str, device: str = "cpu") -> Digits:
        """The digits of the ``owner``, of the data owner (``private``), or those to ``test`` on."""
        with np.load(path) as arrays:
            part = "test" if party == "test" else "train"
            images, labels = arrays[f"{part}_x"], arrays[f"{part}_y"]
        if party == "test":
            return cls(images, labels, device)
        rank = np.zeros(len(labels))
        for digit in range(10):
            rank[labels == digit] = np.linspace(0, 1, (labels == digit).sum(), endpoint=False)
        ours = (rank < OWNER_SHARE) == (party == "owner")
        return cls(images[ours], labels[ours], device)


def uniform(like: Tensor, low: float, high: float) -> Tensor:
    """One number per picture."""
    return torch.empty(len(like), device=like.device).uniform_(low, high)


def place(images: Tensor, across: Tensor, down: Tensor, turn: Tensor) -> Tensor:
    """Images (n, 1, 28, 28) made about half as wide, sheared, turned by an angle, and moved."""
    scale, shear = 0.55 * uniform(images, 0.8, 1.2), uniform(images, -0.3, 0.3)
    cosine, sine = turn.cos() / scale, turn.sin() / scale
    slanted = sine + shear / scale
    rows = torch.stack(
        [
            torch.stack([cosine, slanted, -(cosine * across + slanted * down)], 1),
            torch.stack([-sine, cosine, sine * across - cosine * down], 1),
        ],
        1,
    )
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def fragments(images: Tensor) -> Tensor:
    """Images with nothing left but a square of 9 pixels at a random place."""
    at = torch.arange(SIDE, device=images.device)
    row, column = (uniform(images, 4, 24).view(-1, 1) for _ in range(2))
    near = ((at - row).abs() < 5).unsqueeze(2) & ((at - column).abs() < 5).unsqueeze(1)
    return images * near.unsqueeze(1)


def draw(digits: Digits, numbers: Tensor) -> Tensor:
    """Pictures (n, 1, 28, 28) of numbers (n) between 0 and 99, values 0 to 1."""
    canvas = torch.zeros(len(numbers), 1, SIDE, SIDE, device=numbers.device)
    for digit, centre in ((numbers // 10, -0.45), (numbers % 10, 0.45)):
        image = digits.pick(digit)
        across = centre + uniform(image, -0.08, 0.08)
        turn = uniform(image, -0.45, 0.45)
        canvas = torch.maximum(canvas, place(image, across, uniform(image, -0.3, 0.3), turn))
    for _ in range(FRAGMENTS):
        image = fragments(digits.pick(torch.randint_like(numbers, 10)))
        across, down = uniform(image, -1, 1), uniform(image, -1, 1)
        turn = uniform(image, -math.pi, math.pi)
        canvas = torch.maximum(canvas, place(image, across, down, turn))
    canvas = canvas * uniform(canvas, 0.6, 1).view(-1, 1, 1, 1)
    return (canvas + NOISE * torch.randn_like(canvas)).clamp(0, 1)


def broaden(pictures: Tensor, share: float) -> Tensor:
    """Pictures moved by a share of the way, 0 to 1, towards broader and softer strokes."""
    soft = F.pad(F.avg_pool2d(pictures, 2, stride=1), (1, 1, 1, 1))
    return torch.lerp(pictures, F.max_pool2d(soft, 2, stride=1), share)


def write(mnist: Path, out: Path) -> None:
    """Write ``numbers.npz`` (the private pictures) and ``numbers_public.npz`` (the owner's)."""
    for name, party, numbers in (
        ("numbers.npz", "private", PRIVATE),
        ("numbers_public.npz", "owner", OWNERS),
    ):
        arrays = {"label_names": np.array([str(number) for number in numbers])}
        for seed, (part, count) in enumerate(COUNTS.items()):
            torch.manual_seed(seed)
            labels = torch.arange(count) % len(numbers)
            digits = Digits.read(mnist, "test" if part == "test" else party)
            pictures = draw(digits, torch.tensor(numbers)[labels])
            if party == "private":
                pictures = broaden(pictures, BROADER)
            arrays[f"{part}_x"] = (pictures[:, 0] * 255).round().byte().numpy()
            arrays[f"{part}_y"] = labels.numpy()
        np.savez_compressed(out / name, **arrays)  # type: ignore[arg-type]
