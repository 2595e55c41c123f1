"""The data owner's side for pictures of classes.

python examples/pictures/tuner.py offer/ pictures/ delta/
"""

import typer

import offsite as ot


def tune(offer: str, data: str, out: str, steps: int = 200) -> None:
    """Tune the biases and a new classifier head on one folder of pictures per class."""
    delta = ot.tune(
        ot.Offer.load(offer),
        data,
        ot.BitFit(),
        options=ot.TrainOptions(steps=steps),
        task=ot.load_task("image-classification"),
    )
    delta.save(out)  # send this folder back


if __name__ == "__main__":
    typer.run(tune)
