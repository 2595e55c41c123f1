"""Put the inputs of the benchmarks under ``build/bench``, where the experiment files look for them.

The model and the data are the shared ones described in ``CONTRIBUTING.md``. Of WikiText-2's
training text the first 3 MB are taken (articles are shuffled), of the books 4 MB from the middle,
and for prompt_decoders.py samples of other books and articles; the pictures of numbers are drawn
here. CIFAR-10, which is sorted by class, is shuffled, and 4,000 pictures of it are taken. Of large
sets of questions the first 2,000 are taken beside the whole; SciQ has one file, of which the first
600 questions are for tuning. For models of code, the modeling files of the installed transformers
are the private text (about 3 MB, and 1 MB of other models for the test), and the standard library
of Python is the public text. Models that others pretrained, such as
SmolLM2 and DINOv2, are linked from ``build/models``, where ``hf download REPO --local-dir
build/models/NAME`` puts them.

    python -m benchmarks.prepare ../shared
"""

from __future__ import annotations

import argparse
import shutil
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import transformers

from benchmarks import two_digits

TARGET = Path("build/bench")
CIFAR = {"train": 2_500, "public": 2_500, "test": 1_000}  # the second are the owner's own
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def part(source: Path, target: Path, begin: int, size: int) -> None:
    """Whole lines of about ``size`` characters of a text file, from character ``begin``."""
    text = source.read_text(encoding="utf-8")
    begin = text.find("\n", begin) + 1 if begin else 0
    target.write_text(text[begin : text.find("\n", begin + size) + 1], encoding="utf-8")


def samples(source: Path, target: str, count: int, size: int, shift: float = 0.0) -> None:
    """``count`` samples of whole lines, ``size`` bytes at most, spread evenly over a text file."""
    raw = source.read_bytes()
    for index in range(count):
        begin = int((index + shift) * len(raw) / count)
        lines = raw[begin : begin + size]
        lines = lines[lines.index(b"\n") + 1 : lines.rindex(b"\n") + 1]
        (TARGET / f"public/{target}{index:02}.txt").write_bytes(lines)


def beginning(source: Path, target: Path, lines: int, rest: Path | None = None) -> None:
    """The first lines of a file, and the others into ``rest``."""
    given = source.read_text(encoding="utf-8").splitlines(keepends=True)
    target.write_text("".join(given[:lines]), encoding="utf-8")
    if rest is not None:
        rest.write_text("".join(given[lines:]), encoding="utf-8")


def code(files: Iterable[Path], target: Path, size: int, skip: int = 0) -> None:
    """About ``size`` characters of Python files in a random order, after the first ``skip``."""
    order = sorted(files)
    np.random.default_rng(0).shuffle(order)
    text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in order)
    target.write_text(text[skip : skip + size], encoding="utf-8")


def write_code(target: Path) -> None:
    """A private text of code, its test, and a public text of code."""
    target.mkdir(parents=True, exist_ok=True)
    models = list(Path(transformers.__file__).parent.glob("models/*/modeling_*.py"))
    code(models, target / "train.txt", 3_000_000)
    code(models, target / "test.txt", 1_000_000, skip=3_000_000)
    library = Path(sysconfig.get_path("stdlib")).glob("*.py")
    code(library, target / "public.txt", 4_000_000)


def pictures(source: Path, target: Path) -> None:
    """A part of CIFAR-10, shuffled, as an ``.npz`` with the parts that ``CIFAR`` names."""
    given, arrays = np.load(source), {"label_names": np.array(CLASSES)}
    order = {
        p: np.random.default_rng(0).permutation(len(given[f"{p}_y"])) for p in ("train", "test")
    }
    for name, count in CIFAR.items():
        part = "test" if name == "test" else "train"
        chosen, order[part] = order[part][:count], order[part][count:]
        arrays[f"{name}_x"] = given[f"{part}_x"][chosen]
        arrays[f"{name}_y"] = given[f"{part}_y"][chosen].astype(np.int64)
    np.savez_compressed(target, **arrays)  # type: ignore[arg-type]


def link_models(models: Path) -> None:
    """Link every model folder of a folder under ``build/bench``, where one is not there yet."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for config in sorted(models.glob("*/config.json")):
        link = TARGET / config.parent.name
        if not link.exists():
            link.unlink(missing_ok=True)  # a link whose model was moved
            link.symlink_to(config.parent.resolve())


def main(shared: Path, models: Path) -> None:
    """Copy and cut."""
    link_models(models)
    for folder in ("wikitext", "qa", "public"):
        (TARGET / folder).mkdir(parents=True, exist_ok=True)
    shutil.copytree(shared / "models/bookling-31m", TARGET / "bookling-31m", dirs_exist_ok=True)
    data = shared / "data"
    part(data / "wikitext-2/train.txt", TARGET / "wikitext/train.txt", 0, 3_000_000)
    for name in ("valid.txt", "test.txt"):
        shutil.copy(data / "wikitext-2" / name, TARGET / "wikitext" / name)
    part(data / "books/books_b.txt", TARGET / "books.txt", 20_000_000, 4_000_000)
    samples(data / "books/books_a.txt", "book", 24, 120_000, shift=0.5)
    samples(data / "wikitext-2/valid.txt", "wiki", 6, 186_000)
    shutil.copytree(data / "qa", TARGET / "qa", dirs_exist_ok=True)
    for name in ("piqa", "csqa"):
        beginning(TARGET / f"qa/{name}/train.jsonl", TARGET / f"qa/{name}/train_2000.jsonl", 2_000)
    sciq = TARGET / "qa/sciq"
    beginning(sciq / "val.jsonl", sciq / "first_600.jsonl", 600, sciq / "last_400.jsonl")
    write_code(TARGET / "code")
    pictures(data / "vision/cifar10.npz", TARGET / "cifar10.npz")
    two_digits.write(data / "vision/mnist.npz", TARGET)
    model = "vit-two-digits"
    shutil.copytree(f"benchmarks/models/{model}", TARGET / model, dirs_exist_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Lay out the inputs under build/bench.")
    parser.add_argument("shared", type=Path, help="the folder with `models` and `data`")
    parser.add_argument(
        "--models",
        type=Path,
        default=Path("build/models"),
        help="a folder of other models that the experiments name, each in a folder of its own",
    )
    args = parser.parse_args()
    main(args.shared, args.models)
