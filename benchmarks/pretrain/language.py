"""Pretrain the small language model that the demo tunes.

Makes a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load: LLaMA architecture, 16
blocks, hidden 128, 4 heads on 2 key/value heads, attention biases, tied embeddings, a 4,096-entry
byte-level BPE trained on the same books, bfloat16. Five whole books are held out. Made by::

    python benchmarks/pretrain/language.py --data BOOKS --out src/offsite/demo/model --seconds 360

The data (24.7 million tokens) takes a minute on two CPU cores; the 360 seconds were spent on one
NVIDIA H200, 240 of them shared with another run: 9,549 steps, 626 million tokens, training loss
3.07, held-out loss 3.265 nats per token (perplexity 26.2; 1.39 bits per byte). The budget is
time, so another run gives another number of steps and slightly different weights.
"""

import argparse
import copy
import json
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TokenizersBackend

WINDOW = 512
VOCABULARY = 4096
END = "<|endoftext|>"
BOOK_BREAK = "\n\n\n"  # what stands between two books in the data
HELD_OUT = slice(25, None, 50)  # which books never reach the optimizer
PEAK_RATE = 4e-3
WARM_UP = 0.02  # share of the time budget
REPORT = 100  # steps between two lines


def unwrap(book: str) -> str:
    """Undo the hard line wrapping: a line that runs to the margin continues on the next one.

    Short lines (verse, headings) and indented ones keep their breaks, as do paragraphs. Notices
    of the digitisers are dropped.
    """
    paragraphs = (p for p in book.split("\n\n") if "gutenberg" not in p.lower())
    return re.sub(r"(?<=[^\n]{55})\n(?=\S)", " ", "\n\n".join(paragraphs)).strip()


def train_tokenizer(books: list[str]) -> TokenizersBackend:
    """A byte-level BPE tokenizer of the books."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(books, trainer)
    roles = {"bos_token": END, "eos_token": END, "pad_token": END}
    return TokenizersBackend(tokenizer_object=bpe, model_max_length=WINDOW, **roles)


def prepare(data: Path, prepared: Path) -> None:
    """Books to token ids, on the CPU: `prepared` gets a tokenizer and a tokens.npz."""
    books: list[str] = []
    for path in sorted(data.glob("*.txt")):
        books += [unwrap(book) for book in path.read_text(encoding="utf-8").split(BOOK_BREAK)]
    held_out = books[HELD_OUT]
    del books[HELD_OUT]
    tokenizer = train_tokenizer(books)
    tokenizer.save_pretrained(prepared)
    path = prepared / "tokenizer.json"
    vocabulary = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(vocabulary, separators=(",", ":"), ensure_ascii=False), "utf-8")

    def encode(part: list[str]) -> np.ndarray:
        encodings = tokenizer.backend_tokenizer.encode_batch_fast([b + END for b in part])
        return np.concatenate([np.array(e.ids, dtype=np.uint16) for e in encodings])

    np.savez_compressed(prepared / "tokens.npz", train=encode(books), held_out=encode(held_out))


def new_model() -> LlamaForCausalLM:
    """The model with random weights."""
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=416,
        num_hidden_layers=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        tie_word_embeddings=True,
        max_position_embeddings=WINDOW,
        initializer_range=0.05,
        **special,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # keep the residual stream's size independent of the depth
        for block in model.model.layers:
            block.self_attn.o_proj.weight.div_((2 * len(model.model.layers)) ** 0.5)
            block.mlp.down_proj.weight.div_((2 * len(model.model.layers)) ** 0.5)
    return model


def head_loss(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the targets, in nats per token."""
    return F.cross_entropy((hidden @ head.T).float().flatten(0, 1), targets.flatten())


def save(model: LlamaForCausalLM, prepared: Path, out: Path) -> None:
    """Write the model in bfloat16 with its tokenizer."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((prepared / name).read_bytes())


@torch.no_grad()
def held_out_loss(folder: Path, tokens: Tensor) -> float:
    """Nats per token of the saved model, in float32, over windows that do not overlap."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(tokens.device)
    count = (len(tokens) - 1) // WINDOW * WINDOW
    inputs, targets = (torch.split(tokens[i : i + count].view(-1, WINDOW), 64) for i in (0, 1))
    total = 0.0
    for x, y in zip(inputs, targets, strict=True):
        total += F.cross_entropy(model(x).logits.mT, y, reduction="sum").item()
    return total / count


def train(args: argparse.Namespace, device: str) -> None:
    """Pretrain the model, save it now and then, and say its held-out loss."""
    torch.manual_seed(args.seed)
    with np.load(args.prepared / "tokens.npz") as arrays:
        tokens = torch.from_numpy(arrays["train"].astype(np.int64)).to(device)
        held_out = torch.from_numpy(arrays["held_out"].astype(np.int64)).to(device)
    model = new_model().to(device)
    loss_of = head_loss
    if device == "cuda":  # one compiled block serves all 16: quicker to build than the whole model
        loss_of = torch.compile(head_loss)
        for block in model.model.layers:
            block.compile()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)

    within = torch.arange(WINDOW + 1, device=device)

    def step() -> Tensor:
        starts = torch.randint(len(tokens) - WINDOW, (args.batch, 1), device=device)
        windows = tokens[starts + within]
        with torch.autocast(device, torch.bfloat16):
            hidden = model.model(windows[:, :-1], use_cache=False).last_hidden_state
            loss = loss_of(hidden, model.lm_head.weight, windows[:, 1:])
        torch.autograd.backward(loss)
        return loss.detach()

    step().item()  # compile before the clock starts
    optimizer.zero_grad()
    print(f"{model.num_parameters():,} parameters, {len(tokens):,} tokens", flush=True)
    steps, halfway, begin = 0, False, time.monotonic()
    while (spent := (time.monotonic() - begin) / args.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(spent / WARM_UP, 1 - spent)
        loss = step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        if steps % REPORT == 0:
            print(f"{spent:6.1%} step {steps} training loss {loss.item():.4f}", flush=True)
        if spent > 0.5 and not halfway:  # something to fall back on
            halfway = True
            save(model, args.prepared, args.out)
    save(model, args.prepared, args.out)
    record = {
        "parameters": model.num_parameters(),
        "corpus": f"public-domain books, {len(tokens)} tokens",
        "tokens_seen": steps * args.batch * WINDOW,
        "steps": steps,
        "held_out_loss_nats_per_token": round(held_out_loss(args.out, held_out), 4),
        "held_out_tokens": len(held_out),
        "seed": args.seed,
        "seconds": args.seconds,
        "machine": f"one {torch.cuda.get_device_name()}" if device == "cuda" else "CPU",
    }
    (args.out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of plain-text books")
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--seconds", type=float, default=300, help="0: only prepare the data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prepared", type=Path, default=Path("build/pretrain-language"))
    parser.add_argument("--batch", type=int, default=128, help="windows per step")
    arguments = parser.parse_args()
    if not (arguments.prepared / "tokens.npz").exists():
        prepare(arguments.data, arguments.prepared)
    if arguments.seconds > 0:
        train(arguments, "cuda" if torch.cuda.is_available() else "cpu")
