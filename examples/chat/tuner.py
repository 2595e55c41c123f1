"""The data owner's side for conversations.

python examples/chat/tuner.py offer/ private.jsonl delta/
"""

import typer

import offsite as ot


def tune(offer: str, data: str, out: str, steps: int = 200) -> None:
    """Tune LoRA on conversations; only the assistant's turns are learnt."""
    delta = ot.tune(
        ot.Offer.load(offer),
        data,
        ot.LoRA(rank=8),
        options=ot.TrainOptions(steps=steps),
        task=ot.load_task("chat"),
    )
    delta.save(out)  # send this folder back


if __name__ == "__main__":
    typer.run(tune)
