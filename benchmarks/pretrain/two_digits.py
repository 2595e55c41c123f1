"""Pretrain the vision transformer that reads two-digit numbers, on the owner's 50 of 100.

Makes a folder that ``AutoModelForImageClassification`` and ``AutoImageProcessor`` load: ViT, 12
blocks, hidden 64, 4 heads, 28x28 pixels in 7x7 patches, bfloat16. Its pictures are drawn anew for
every step (``benchmarks/two_digits.py``), and any of its blocks is skipped for a tenth of them, so
that, as in a large language model, every block adds a little. Made by::

    python -m benchmarks.pretrain.two_digits --mnist mnist.npz \\
        --out benchmarks/models/vit-two-digits

on one NVIDIA H200, shared with another run, in 153 s: of 10,000 test pictures of those numbers it
gets 82.8% right, 74.0% with half of the middle blocks, 13.6% without them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from benchmarks.two_digits import OWNERS, SIDE, Digits, draw

MEAN, DEVIATION = 0.15, 0.3
PEAK_RATE = 1e-3
WARM_UP = 0.05  # share of the steps
REPORT = 500  # steps between two lines
TESTS = 10  # batches


class SkipSome:
    """Forward hook: stochastic depth, image by image, with this probability."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        keep = torch.rand(len(output), 1, 1, device=output.device) >= self.share
        return inputs[0] + (output - inputs[0]) * keep / (1 - self.share)


def new_model() -> ViTForImageClassification:
    """The model with random weights."""
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=12,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=SIDE,
        patch_size=7,
        id2label={index: str(number) for index, number in enumerate(OWNERS)},
        label2id={str(number): index for index, number in enumerate(OWNERS)},
    )
    return ViTForImageClassification(config)


def save(model: ViTForImageClassification, out: Path) -> None:
    """Write the model, which becomes bfloat16, and its image processor."""
    model.to(torch.bfloat16).save_pretrained(out)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True),
        "size": {"height": SIDE, "width": SIDE},
        "resample": 2,
        "rescale_factor": 1 / 255,
        "image_mean": [MEAN] * 3,
        "image_std": [DEVIATION] * 3,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def batch(digits: Digits, size: int, device: str) -> tuple[Tensor, Tensor]:
    """Normalised pictures (size, 3, 28, 28) and classes."""
    labels = torch.randint(len(OWNERS), (size,), device=device)
    pictures = draw(digits, torch.tensor(OWNERS, device=device)[labels])
    return ((pictures - MEAN) / DEVIATION).expand(-1, 3, -1, -1), labels


@torch.no_grad()
def accuracy(
    model: nn.Module, blocks: list[nn.Module], tests: list[tuple[Tensor, Tensor]]
) -> float:
    """Share of test pictures that the model gets right with these of its blocks."""
    model.vit.layers = nn.ModuleList(blocks)  # type: ignore[union-attr]
    right = [(model(images).logits.argmax(1) == labels).float().mean() for images, labels in tests]
    return round(torch.stack(right).mean().item(), 4)


def train(args: argparse.Namespace, device: str) -> None:
    """Pretrain the model and save it."""
    torch.manual_seed(args.seed)
    digits = Digits.read(args.mnist, "owner", device)
    model = new_model().to(device).train()
    for block in model.vit.layers:
        block.register_forward_hook(SkipSome(args.skip))
        block.compile(disable=device == "cpu")  # one compiled block serves all 12
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.05, fused=True
    )
    begin = time.monotonic()
    for step in range(args.steps):
        done = step / args.steps
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(done / WARM_UP, (1 + math.cos(math.pi * done)) / 2)
        images, labels = batch(digits, args.batch, device)
        with torch.autocast(device, torch.bfloat16):
            logits = model(images).logits
        loss = F.cross_entropy(logits.float(), labels)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % REPORT == 0:
            print(f"{done:6.1%} step {step} training loss {loss.item():.4f}", flush=True)
    save(model, args.out)
    tested = AutoModelForImageClassification.from_pretrained(args.out, dtype=torch.float32)
    blocks = list(tested.to(device).vit.layers)
    torch.manual_seed(0)
    unseen = Digits.read(args.mnist, "test", device)
    tests = [batch(unseen, 1000, device) for _ in range(TESTS)]
    record = {
        "parameters": model.num_parameters(),
        "corpus": f"numbers of an even digit sum, drawn from {len(digits.images)} MNIST digits",
        "images_seen": args.steps * args.batch,
        "steps": args.steps,
        "test_accuracy": accuracy(tested, blocks, tests),
        "without_half_the_middle": accuracy(
            tested, [*blocks[:2], *blocks[2:-2:2], *blocks[-2:]], tests
        ),
        "without_the_middle": accuracy(tested, blocks[:2] + blocks[-2:], tests),
        "seed": args.seed,
        "seconds": round(time.monotonic() - begin),
        "stochastic_depth": args.skip,
        "machine": f"one {torch.cuda.get_device_name()}" if device == "cuda" else "CPU",
    }
    (args.out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True, help="mnist.npz")
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--steps", type=int, default=4300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--skip", type=float, default=0.1, help="stochastic depth, 0 to 1")
    train(parser.parse_args(), "cuda" if torch.cuda.is_available() else "cpu")
