"""The data owner's side for a table with a column of answers.

python examples/table/tuner.py offer/ task.toml reports.csv delta/
"""

import typer

import offsite as ot


def tune(offer: str, task: str, data: str, out: str, steps: int = 200) -> None:
    """Tune LoRA of rank 8 on the rows of a CSV file, as the task file words them."""
    delta = ot.tune(
        ot.Offer.load(offer),
        data,
        ot.LoRA(rank=8),
        options=ot.TrainOptions(steps=steps),
        task=ot.load_task(task),
    )
    delta.save(out)  # send this folder back


if __name__ == "__main__":
    typer.run(tune)
