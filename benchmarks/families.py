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
import inspect
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
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import offsite as ot
from offsite.codec import to_json
from offsite.compress.importance import bypass
from offsite.exchange.delta import Delta, new_delta
from offsite.model.blocks import get_blocks

BLOCKS, WIDTH, VOCABULARY, SECONDS = 8, 64, 512, 60
DEPTH = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
WIDE = ("hidden_size", "d_model", "n_embd", "dim", "model_dim", "embed_dim")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")
FIXED = ("vocab", "token", "position", "_id", "window", "max_", "chunk", "seq", "n_positions")


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
        found = watched(family)
        path.write_text(json.dumps(asdict(found)) + "\n")
        print(f"{found.kind:10} {family:24} {found.seconds:5.1f} s  {found.sentence}", flush=True)


def watched(family: str) -> Outcome:
    """:func:`judge` with a time limit."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = judge(family, Path(folder))
    except TimeoutError:
        found = Outcome(family, "not built", f"not done after {SECONDS} s at this size")
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


@torch.no_grad()
def logits(model: Any, batch: Any) -> torch.Tensor:
    """The logits of a batch; every call starts from the same random state."""
    torch.manual_seed(0)
    found: torch.Tensor = model(**batch, use_cache=False).logits
    if not bool(torch.isfinite(found).all()):
        raise ValueError("its logits are not finite at this size")
    return found


def build(family: str) -> Any:
    """A tiny model of a family: the first set of changes that transformers takes."""
    config_class = CONFIG_MAPPING[family]
    error: Exception | None = None
    for changes in attempts(config_class):
        try:
            torch.manual_seed(0)
            config = config_class(**changes)
            with torch.device("meta"):
                probe = transformers.AutoModelForCausalLM.from_config(config)
            if sum(p.numel() for p in probe.parameters()) > 2e8:
                raise ValueError("it has more than 200M parameters at this size")
            model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
            logits(model, {"input_ids": torch.arange(1, 13)[None]})
            return model
        except TimeoutError:
            raise
        except Exception as found:  # try the next set
            error = error or found
    assert error is not None
    raise error


def attempts(config_class: Any) -> list[dict[str, Any]]:
    """Sets of changes to a default configuration, from true proportions to the plainest."""
    own = shrunk(config_class)
    plain = {k: v for k, v in own.items() if k in (*DEPTH, *WIDE, *HEADS, "vocab_size")}
    with_experts = {k: v for k, v in own.items() if "expert" in k} | plain
    heads = {"num_key_value_heads": 4, "head_dim": WIDTH // 4} | own
    few = {k: v for k, v in own.items() if k in (*DEPTH, "vocab_size")}
    return [own, heads, with_experts, plain, few]


def shrunk(config_class: Any) -> dict[str, Any]:
    """Changes that make a default configuration tiny: widths divided by one factor."""
    default = config_class()
    changes: dict[str, Any] = {}
    for name, part in getattr(default, "sub_configs", {}).items():
        if getattr(default, name, None) is not None and isinstance(part, type):
            with suppress(Exception):
                changes[name] = shrunk(type(getattr(default, name)))
    known = {k: v for k, v in default.to_dict().items() if k in parameters(config_class)}
    width = next((known[k] for k in WIDE if isinstance(known.get(k), int)), None)
    if width is None:
        return changes
    factor = WIDTH / width
    for key, value in known.items():
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if key in DEPTH:
            changes[key] = BLOCKS
        elif key == "num_kv_shared_layers":
            changes[key] = min(value, 2)
        elif key in WIDE:
            changes[key] = WIDTH
        elif key in HEADS:
            changes[key] = 4
        elif key == "num_key_value_heads":
            changes[key] = 4 if value == known.get("num_attention_heads") else 2
        elif key == "head_dim":
            changes[key] = WIDTH // 4
        elif key == "vocab_size":
            changes[key] = VOCABULARY
        elif any(part in key for part in FIXED) or ("expert" in key and "size" not in key):
            continue
        elif value >= 48:
            changes[key] = max(8, 8 * round(value * factor / 8))
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if isinstance(known.get(key), int) and known[key] >= VOCABULARY:
            changes[key] = 0
    return changes


def parameters(config_class: Any) -> set[str]:
    """The names that a configuration class takes."""
    return set(inspect.signature(config_class.__init__).parameters) | set(
        getattr(config_class, "__dataclass_fields__", {})
    )


def experts(config: Any) -> int:
    """How many experts a layer has, by whatever name."""
    text = config.get_text_config().to_dict()
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return max((text[name] for name in names if isinstance(text.get(name), int)), default=0)


def first_line(error: Exception) -> str:
    """The first line of a message, cut to a table's width."""
    return next(iter(str(error).strip().splitlines()), "")[:160]


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
