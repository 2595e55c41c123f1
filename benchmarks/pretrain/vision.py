"""Pretrain the small vision transformer of the benchmarks, on five of the ten CIFAR-10 classes.

Makes a folder that ``AutoModelForImageClassification`` and ``AutoImageProcessor`` load: ViT, 12
blocks, hidden 192, 3 heads, 32x32 images in 4x4 patches, bfloat16. It has never seen the other
five classes, which are left for tuning. Made by::

    python benchmarks/pretrain/vision.py --data cifar10.npz --out benchmarks/models/vit-cifar5 \\
        --seconds 240

on one NVIDIA H200, shared with language.py: 8,432 steps, 869 passes over 4,968 images, training
loss 0.94 (on mixed images, smoothed labels), 79.3% of the 992 test images of those classes right,
test loss 0.619. The budget is time, so another run differs a little.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

NAMES = ["airplane", "automobile", "bird", "cat", "deer"]  # classes 0-4
SIDE = 32
REPORT = 100  # steps between two lines
PEAK_RATE = 1e-3
WARM_UP = 0.05  # share of the time budget


def uniform(images: Tensor, low: float, high: float) -> Tensor:
    """One number per image, shaped to broadcast over (image, channel, row, column)."""
    return torch.empty(len(images), 1, 1, 1, device=images.device).uniform_(low, high)


def boxes(area: Tensor) -> Tensor:
    """A mask per image: 1 inside a square at a random place that covers about `area` of it."""
    half = area.sqrt() * SIDE / 2
    at = torch.arange(SIDE, device=area.device) + 0.5
    row, column = uniform(area, 0, SIDE), uniform(area, 0, SIDE)
    return (((at.view(-1, 1) - row).abs() < half) & ((at - column).abs() < half)).float()


def move(images: Tensor) -> Tensor:
    """Flip and shift every image by whole pixels; turn and zoom half of them as well."""
    some = (uniform(images, 0, 1) < 0.5).float()
    angle = some * uniform(images, -0.25, 0.25)
    zoom = 1 + some * uniform(images, -0.25, 0.1)
    flip = uniform(images, -1, 1).sign()
    across, down = (uniform(images, -4.5, 4.5).round() * (2 / SIDE) for _ in range(2))
    along, aside = zoom * angle.cos(), zoom * angle.sin()
    rows = torch.cat([flip * along, -aside, across, flip * aside, along, down], dim=3)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def jitter(images: Tensor) -> Tensor:
    """Random brightness, contrast and saturation."""
    factors = [uniform(images, 0.6, 1.4) for _ in range(3)]
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (mean + (images - mean) * factors[0]) * factors[1]
    grey = images.mean(1, keepdim=True)
    return (grey + (images - grey) * factors[2]).clamp(0, 1)


def mix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Blend (mixup) or patch (cutmix) most images with another one; the targets follow."""
    share = uniform(images, 0, 1)
    kept = torch.where(uniform(images, 0, 1) < 0.5, 1 - boxes(1 - share), share)
    kept = torch.where(uniform(images, 0, 1) < 0.8, kept, 1.0)
    other = torch.randperm(len(images), device=images.device)
    weight = kept.mean((1, 2, 3)).unsqueeze(1)
    images = images * kept + images[other] * (1 - kept)
    return images, targets * weight + targets[other] * (1 - weight)


class SkipSome:
    """Forward hook: stochastic depth, image by image, with this probability."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        keep = torch.rand(len(output), 1, 1, device=output.device) >= self.share
        return inputs[0] + (output - inputs[0]) * keep / (1 - self.share)


def new_model() -> ViTForImageClassification:
    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=SIDE,
        patch_size=4,
        id2label=dict(enumerate(NAMES)),
        label2id={name: i for i, name in enumerate(NAMES)},
    )
    return ViTForImageClassification(config)


def save(model: ViTForImageClassification, mean: Tensor, std: Tensor, out: Path) -> None:
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True),
        "size": {"height": SIDE, "width": SIDE},
        "resample": 2,
        "rescale_factor": 1 / 255,
        "image_mean": [round(m, 4) for m in mean.flatten().tolist()],
        "image_std": [round(s, 4) for s in std.flatten().tolist()],
    }
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


@torch.no_grad()
def test(folder: Path, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor) -> list[float]:
    """Accuracy and loss of the saved model, in float32."""
    model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32)
    logits = model.to(images.device)((images - mean) / std).logits
    right = (logits.argmax(1) == labels).float().mean()
    return [right.item(), F.cross_entropy(logits, labels).item()]


def load(path: Path, part: str, device: str) -> tuple[Tensor, Tensor]:
    with np.load(path) as arrays:
        ours = arrays[f"{part}_y"] < len(NAMES)
        pixels = torch.from_numpy(arrays[f"{part}_x"][ours]).to(device)
        labels = torch.from_numpy(arrays[f"{part}_y"][ours]).to(device)
    return pixels.permute(0, 3, 1, 2).contiguous() / 255, labels.long()


def train(args: argparse.Namespace, device: str) -> None:
    torch.manual_seed(args.seed)
    images, labels = load(args.data, "train", device)
    std, mean = torch.std_mean(images, (0, 2, 3), keepdim=True)
    one_hot = F.one_hot(labels, len(NAMES)).float()
    model = new_model().to(device).train()
    for block in model.vit.layers:
        block.register_forward_hook(SkipSome(args.skip))
        block.compile(disable=device == "cpu")  # one compiled block serves all 12
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.99), fused=True)

    def step() -> Tensor:
        chosen = torch.randperm(len(images), device=device)[: args.batch]
        batch, targets = mix((jitter(move(images[chosen])) - mean) / std, one_hot[chosen])
        erased = boxes(uniform(batch, 0, 0.25))
        erased *= uniform(batch, 0, 1) < 0.25
        with torch.autocast(device, torch.bfloat16):
            logits = model(batch * (1 - erased)).logits
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=0.1)
        loss.backward()
        return loss.detach()

    step().item()  # compile before the clock starts
    optimizer.zero_grad()
    print(f"{model.num_parameters():,} parameters, {len(images):,} images", flush=True)
    steps, halfway, begin = 0, False, time.monotonic()
    while (spent := (time.monotonic() - begin) / args.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(spent / WARM_UP, (1 + math.cos(math.pi * spent)) / 2)
        loss = step()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        if steps % REPORT == 0:
            print(f"{spent:6.1%} step {steps} training loss {loss.item():.4f}", flush=True)
        if spent > 0.5 and not halfway:  # something to fall back on
            halfway = True
            save(model, mean, std, args.out)
    save(model, mean, std, args.out)
    right, test_loss = test(args.out, *load(args.data, "test", device), mean, std)
    record = {
        "parameters": model.num_parameters(),
        "corpus": f"CIFAR-10 classes 0-4, {len(images)} images",
        "images_seen": steps * args.batch,
        "steps": steps,
        "test_accuracy": round(right, 4),
        "test_loss": round(test_loss, 4),
        "seed": args.seed,
        "seconds": args.seconds,
        "stochastic_depth": args.skip,
        "machine": f"one {torch.cuda.get_device_name()}" if device == "cuda" else "CPU",
    }
    (args.out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="cifar10.npz")
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--skip", type=float, default=0.1, help="stochastic depth, 0 to 1")
    train(parser.parse_args(), "cuda" if torch.cuda.is_available() else "cpu")
