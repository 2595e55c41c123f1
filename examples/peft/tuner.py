"""The data owner's side without offsite's own training: plain Trainer and peft.

python examples/peft/tuner.py offer/ private.txt delta/

An offer of the family's own blocks is a plain transformers folder. Train LoRA on its adapter
blocks with any tool that writes a peft adapter. Then import the adapter as a delta; on the command
line that is ``offsite delta import offer/ adapter/ --out delta/``. The owner runs examples/text.
"""

from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import typer

import offsite as ot
from offsite.tuner.importing import import_peft


def tune(offer: str, data: str, out: str, steps: int = 200) -> None:
    """Train LoRA of rank 8 with ``transformers.Trainer`` and write the delta."""
    manifest = ot.Offer.load(offer).manifest
    tokenizer = transformers.AutoTokenizer.from_pretrained(offer)
    model = transformers.AutoModelForCausalLM.from_pretrained(offer)
    config = peft.LoraConfig(
        r=8,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        layers_to_transform=list(manifest.adapter),  # the blocks that may change
        task_type="CAUSAL_LM",
    )
    tuned = peft.get_peft_model(model, config)
    trainer = transformers.Trainer(
        model=tuned,
        args=transformers.TrainingArguments(
            output_dir=f"{out.rstrip('/')}.work",
            max_steps=steps,
            learning_rate=1e-3,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=windows(Path(data).read_text(encoding="utf-8"), tokenizer),
    )
    trainer.train()
    tuned.save_pretrained(f"{out.rstrip('/')}.work")
    import_peft(ot.Offer.load(offer), f"{out.rstrip('/')}.work").save(out)  # send this folder back


def windows(text: str, tokenizer: transformers.PreTrainedTokenizerBase, length: int = 64) -> Any:
    """The tokens of a text in rows of one length."""
    ids = torch.tensor(tokenizer(text)["input_ids"])
    rows = ids[: len(ids) // length * length].reshape(-1, length)
    return [{"input_ids": row, "labels": row} for row in rows]


if __name__ == "__main__":
    typer.run(tune)
