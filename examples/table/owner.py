"""The model owner's side for a table with a column of answers.

python examples/table/owner.py offer MODEL offer/
python examples/table/owner.py plug MODEL delta/ tuned/
"""

import typer

import offsite as ot


def offer(model: str, out: str, keep: int = 2) -> None:
    """Make the adapter of 2 blocks at each end, and ship ``keep`` of the blocks between."""
    made, _ = ot.make_offer(model, adapter=ot.ends(2, 2), recipe=[ot.Drop(keep=keep)])
    made.save(out)  # and beside it the record, offer.record.json: never send that file


def plug(model: str, delta: str, out: str, record: str = "offer.record.json") -> None:
    """Put the delta that came back into the full model; transformers opens the folder."""
    tuned = ot.plug(model, ot.Delta.load(delta), ot.Record.load(record))
    tuned.save_pretrained(out)


if __name__ == "__main__":
    app = typer.Typer()
    app.command()(offer)
    app.command()(plug)
    app()
