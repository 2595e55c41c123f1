"""The whole story on a small embedded language model, in one command and without a network.

The model owner is the package: 16 LLaMA blocks, 3.9M parameters, pretrained on public-domain books
by ``benchmarks/pretrain/language.py``. The data owner's private text is what every Python carries:
the language reference in ``pydoc_data.topics``.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from rich.table import Table

from offsite.cli import options as o
from offsite.cli.research import best_of
from offsite.environment import merged
from offsite.files import check_free, write_file
from offsite.lab import Lab
from offsite.plan import Plan, Row
from offsite.report import write_report
from offsite.report.terminal import terminal
from offsite.scores import KEYS, TITLES
from offsite.train import TrainOptions

MODEL = Path(__file__).parent / "model"
LR = 5e-4  # of the adapter; full fine-tuning takes the lab's 1e-3


def run(out: Path, steps: int, seed: int, as_json: bool) -> None:
    """Offer, tune, plug and score; writes the exchange, the results and a report under ``out``.

    Raises:
        OffsiteError: ``out`` exists.
    """
    start = time.perf_counter()
    check_free(out)
    train, test = private_text(out / "private")
    plan = Plan(
        model=str(MODEL),
        data=str(train),
        eval_data=str(test),
        max_length=128,
        recipes={
            "uniform 2-8-2": [{"kind": "drop", "keep": 8}],
            "noise + int4": [{"kind": "noise", "scale": 0.5}, {"kind": "quantise", "bits": 4}],
        },
        deltas={"full": {"kind": "full"}},
        seeds=(seed,),
        options=TrainOptions(steps=steps, lr=LR),
    )
    o.note("offer, tune, plug and score: both roles on this machine, meeting only through folders")
    rows = []
    lab = Lab(plan, out / "results", exchange=out / "exchange")
    for row in lab.run():
        rows.append(row)
        o.note(f"done  {row.recipe}  {row.delta}  plug-in {math.exp(row.scores.plug_in or 0):.1f}")
    result = {
        "command": f"offsite demo --steps {steps} --seed {seed}",
        "environment": merged(lab.environments),
        "rows": [row.to_json() for row in rows],
    }
    import json

    write_file(out / "results" / "results.json", json.dumps(result, default=o.plain) + "\n")
    page = write_report([out / "results"], out / "report.html", title="offsite demo")
    slim = [{k: v for k, v in row.items() if k != "details"} for row in result["rows"]]  # type: ignore[attr-defined]
    seconds = time.perf_counter() - start
    lines = [
        terminal(result["rows"], "perplexity (lower is better); recovered and gap in nats"),  # type: ignore[arg-type]
        *(picture(row) for row in rows),
        f"{out}/exchange holds the offer, the owner's record and the deltas; the page is {page}",
        f"{seconds:.0f} seconds",
    ]
    shown = {**result, "rows": slim, "report": str(page), "seconds": seconds}
    o.emit({**shown, **best_of(slim[0])}, as_json, lines)


def private_text(folder: Path) -> tuple[Path, Path]:
    """Python's language reference as two files: every eighth topic is kept to score on."""
    from pydoc_data.topics import topics

    texts = [topics[name].strip() for name in sorted(topics)]
    train, test = folder / "train.txt", folder / "test.txt"
    write_file(train, "\n\n".join(t for i, t in enumerate(texts) if i % 8) + "\n")
    write_file(test, "\n\n".join(texts[::8]) + "\n")
    return train, test


def picture(row: Row) -> Table:
    """The five scores of a row as bars: how far each lies from full zero-shot."""
    table = Table(
        box=None, show_header=False, title=f"perplexity: {row.recipe}", title_justify="left"
    )
    known = {key: getattr(row.scores, key) for key in KEYS}
    high = max(value for value in known.values() if value is not None)
    for key, value in known.items():
        if value is not None:
            bar = "█" * max(1, round(44 * value / high))
            colour = "green" if key == "plug_in" else "blue"
            table.add_row(TITLES[key], f"[{colour}]{bar}[/] {math.exp(value):.1f}")
    return table
