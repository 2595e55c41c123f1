"""The command line: one thin function per command, heavy imports inside them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from offsite import __version__
from offsite.cli import (
    demo,
    exchange,
    importance,
    look,
    owner,
    prompts,
    research,
    sweep,
    trust,
    tuner,
)
from offsite.errors import OffsiteError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        typer.echo(f"offsite {__version__}")
        raise typer.Exit


@app.callback()
def top_level(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Fine-tune a model without its owner seeing the data, or the data's owner the model."""


OWNER, TUNER, BOTH = "Model owner", "Data owner", "Both, and researchers"
TRUST = "Who sent this"
COMMANDS: tuple[tuple[str, Callable[..., None], str, str], ...] = (
    (OWNER, owner.offer, "offer", "model/ --out offer/ --adapter ends:2,2 --keep 8"),
    (OWNER, owner.plug, "plug", "model/ delta/ --record offer.record.json --out tuned/"),
    (OWNER, importance.importance, "importance", "model/ --data public.txt --out blocks.png"),
    (
        OWNER,
        prompts.prompt_decoder,
        "prompt-decoder",
        "model/ --data news.txt --data mail.txt --out decoder.safetensors",
    ),
    (TUNER, tuner.tune, "tune", "offer/ --data private.txt --delta lora:rank=8 --out delta/"),
    (BOTH, research.score, "score", "offer/ tuned/ --data test.txt"),
    (
        BOTH,
        research.lab,
        "lab",
        "model/ --data train.txt --eval-data test.txt --keep 8 --delta lora --out build/lab",
    ),
    (
        BOTH,
        sweep.sweep,
        "sweep",
        "model/ --data train.txt --eval-data test.txt --budgets 0.6,0.3 --out build/sweep",
    ),
    (BOTH, look.report, "report", "build/lab --out lab.html"),
    (BOTH, look.inspect, "inspect", "offer/"),
    (BOTH, look.deltas, "deltas", ""),
    (BOTH, look.recipes, "recipes", ""),
    (BOTH, look.tasks, "tasks", ""),
    (BOTH, demo.demo, "demo", ""),
    (BOTH, exchange.card, "card", "offer/ --licence apache-2.0"),
    (BOTH, exchange.push, "push", "offer/ owner/tiny-offer"),
    (BOTH, exchange.pull, "pull", "owner/tiny-offer --out offer/"),
    (TRUST, trust.keygen, "keygen", ""),
    (TRUST, trust.peer, "peer", "alice alice.pub"),
    (TRUST, trust.sign, "sign", "offer/ --to alice"),
    (TRUST, trust.verify, "verify", "offer/"),
    (TRUST, trust.encrypt, "encrypt", "delta/ --to age1... --out delta.age"),
    (TRUST, trust.decrypt, "decrypt", "delta.age --out delta/"),
)
for panel, function, name, words in COMMANDS:
    example = f"Example: offsite {name} {words}".rstrip()
    app.command(name, rich_help_panel=panel, epilog=example)(function)
app.add_typer(tuner.delta_app, name="delta", rich_help_panel=TUNER)


def main() -> None:
    """Run the command line; what the user can mend is one sentence and exit status 2."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, to their callers
    try:
        app()
    except OffsiteError as error:
        fail(str(error))
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        fail(f"Cannot read or write{where}: {error.strerror or type(error).__name__}.")
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None


def fail(message: str) -> None:
    """Say what is wrong on standard error and exit with status 2."""
    print(f"offsite: {message}", file=sys.stderr)
    raise SystemExit(2) from None
