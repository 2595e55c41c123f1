"""What works of every causal language family that transformers knows, built tiny.

Each family is built with random weights in the proportions of its default configuration (experts as
many as there are, widths divided), written as a checkpoint, and offered with half of its middle
dropped. An exact family passes three checks:

* the tensors of the offer are those that transformers loads for the blocks that stay;
* the emulator gives the logits of the full model with the dropped blocks passed over;
* an untouched delta plugs back and gives the full model's logits.

Tensors are compared bit for bit, logits with a tolerance of 1e-5 of the largest, because some
kernels round differently from one call to the next.

A family that is refused is listed with the sentence that the user reads, and one that transformers
itself cannot build or write at this size with transformers' own. Run it in shares to save time::

    python benchmarks/families.py --out build/families [--share 1/4] [FAMILY ...]
    python benchmarks/families.py --out build/families --table TABLE.md
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from tiny_families import build, experts, first_line, logits  # type: ignore[import-not-found]
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import offsite as ot
from offsite.codec import to_json
from offsite.compress.importance import bypass
from offsite.exchange.delta import Delta, new_delta
from offsite.model.blocks import get_blocks

SECONDS = 60


@dataclass(frozen=True)
class Outcome:
    """What became of a family.

    Attributes:
        kind: exact, refused, not built (by transformers), or wrong.
        sentence: why, where it is not exact.
        blocks, experts: of the tiny model; experts 0 where it has none.
    """

    family: str
    kind: str
    sentence: str = ""
    blocks: int = 0
    experts: int = 0
    seconds: float = 0.0


def main() -> None:
    """Read the command line and run a share of the families, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", default="1/1", help="which part of the families, such as 2/4")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="limit of one family")
    parser.add_argument("--table", type=Path, help="write a table of what --out holds instead")
    parser.add_argument("families", nargs="*")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.table:
        args.table.write_text(table(args.out))
        return
    transformers.utils.logging.set_verbosity(transformers.utils.logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    part, of = (int(number) for number in args.share.split("/"))
    for family in args.families or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)[part - 1 :: of]:
        path = args.out / f"{family}.json"
        if path.exists() and not args.families:
            continue
        found = watched(family, args.seconds)
        path.write_text(json.dumps(asdict(found)) + "\n")
        print(f"{found.kind:10} {family:24} {found.seconds:5.1f} s  {found.sentence}", flush=True)


def watched(family: str, seconds: int) -> Outcome:
    """:func:`judge` with a time limit."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = judge(family, Path(folder))
    except TimeoutError:
        found = Outcome(family, "not built", f"not done after {seconds} s at this size")
    finally:
        signal.alarm(0)
    return Outcome(**{**asdict(found), "seconds": round(time.perf_counter() - start, 1)})


def judge(family: str, folder: Path) -> Outcome:
    """Build, write, offer and plug one family."""
    try:
        model = build(family)
        model.save_pretrained(folder / "model")
        model = type(model).from_pretrained(folder / "model").eval()
        batch = {"input_ids": torch.arange(1, 13)[None]}
        expected = logits(model, batch)
    except TimeoutError:
        raise
    except Exception as error:  # whatever a family raises at this size
        return Outcome(family, "not built", f"{type(error).__name__}: {first_line(error)}")
    sizes = {"experts": experts(model.config)}
    with suppress(ot.OffsiteError):
        sizes["blocks"] = len(get_blocks(model))
    try:
        offer, record = ot.make_offer(
            folder / "model", adapter=ot.ends(2, 2), recipe=[ot.Drop(keep=2)]
        )
        offer.save(folder / "offer", folder / "record.json")
        emulator = ot.Offer.load(folder / "offer")
        plugged = ot.plug(folder / "model", untouched(emulator, folder), record)
    except ot.OffsiteError as error:
        return Outcome(
            family, "refused", str(error).replace(str(folder / "model"), "MODEL"), **sizes
        )
    except TimeoutError:
        raise
    except Exception as error:  # a traceback that a user would see
        return Outcome(family, "wrong", f"{type(error).__name__}: {first_line(error)}", **sizes)
    fresh = type(model).from_pretrained(folder / "model")  # some rescale weights when they run
    for index, position in enumerate(sorted((*record.offers[0].adapter, *record.offers[0].middle))):
        own = get_blocks(fresh)[position].state_dict()
        for name, value in get_blocks(emulator.model)[index].state_dict().items():
            if not torch.equal(own[name], value):
                words = f"the offer's '{name}' of block {position} is not the model's"
                return Outcome(family, "wrong", words, **sizes)
    wrong = differences(model, emulator.model, record, plugged, batch, expected)
    return Outcome(family, "wrong" if wrong else "exact", wrong, **sizes)


def differences(
    model: Any, emulator: Any, record: Any, plugged: Any, batch: Any, expected: torch.Tensor
) -> str:
    """What is not as it must be, in words; empty where all is exact."""
    entry = record.offers[0]
    order = sorted((*entry.adapter, *entry.middle))
    with bypass(model, set(range(entry.total)) - set(order)):
        if not close(logits(model, batch), logits(emulator, batch)):
            return "the emulator is not the model with the dropped blocks passed over"
    if not close(logits(plugged, batch), expected):
        return "an untouched delta changes the model"
    return ""


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits differ by rounding alone."""
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


def untouched(offer: ot.Offer, folder: Path) -> Delta:
    """A delta over the whole adapter blocks as they came, written and read back."""
    method = ot.Full()
    attached = method.attach(offer.model, offer.manifest.adapter)
    delta = new_delta(offer.manifest, attached.tensors(), to_json(method))
    delta.save(folder / "delta")
    return Delta.load(folder / "delta")


def table(folder: Path) -> str:
    """The results of a folder as Markdown."""
    found = [Outcome(**json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    count = Counter(outcome.kind for outcome in found)
    lines = [
        ", ".join(f"{number} {kind}" for kind, number in count.most_common())
        + f"; {len(found)} families of transformers {transformers.__version__}.",
        "",
    ]
    for kind in ("wrong", "refused", "not built", "exact"):
        members = [outcome for outcome in found if outcome.kind == kind]
        if not members:
            continue
        lines += [f"## {kind.capitalize()}", ""]
        if kind == "exact":
            lines += [", ".join(f"`{outcome.family}`" for outcome in members) + ".", ""]
            continue
        lines += ["| family | sentence |", "|---|---|"]
        lines += [f"| `{o.family}` | {o.sentence.replace('|', '/')} |" for o in members]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
