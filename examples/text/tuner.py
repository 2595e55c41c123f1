"""The data owner's side for plain text.

python examples/text/tuner.py offer/ private.txt delta/
"""

import typer

import offsite as ot


def tune(offer: str, data: str, out: str, steps: int = 200) -> None:
    """Tune LoRA of rank 8 in the adapter blocks on a text file."""
    delta = ot.tune(
        ot.Offer.load(offer),
        data,
        ot.LoRA(rank=8),
        options=ot.TrainOptions(steps=steps),
    )
    delta.save(out)  # send this folder back


if __name__ == "__main__":
    typer.run(tune)
