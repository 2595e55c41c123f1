"""The command line: one thin function per command, heavy imports inside them."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from offsite import __version__
from offsite.cli import (
    audit,
    demo,
    importance,
    inspecting,
    lab,
    owner,
    prompt_decoder,
    publish,
    score,
    signing,
    sweep,
    tuner,
)
from offsite.cli.failure import debugging, fail, unable, unexpected
from offsite.cli.process import Stopped, interruption, prepare, stoppable
from offsite.errors import OffsiteError
from offsite.training.processes import leave_group, main_process, silent

# Threads that wait sleep. By default they spin, and torch is ten times slower when other work runs.
# The variable is read once, when torch loads, so it is set before any command.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an error; every command takes it."),
    ] = False,
) -> None:
    """Fine-tune a model without showing it to the data owner, or the data to the model owner."""


OWNER, TUNER, BOTH = "Model owner", "Data owner", "Both, and researchers"
TRUST = "Signing and encryption"
COMMANDS: tuple[tuple[str, Callable[..., None], str, str], ...] = (
    (OWNER, owner.offer, "offer", "model/ --out offer/ --adapter ends:2,2 --keep 8"),
    (OWNER, owner.plug, "plug", "model/ delta/ --record offer.record.json --out tuned/"),
    (OWNER, importance.importance, "importance", "model/ --data public.txt --out blocks.png"),
    (
        OWNER,
        prompt_decoder.prompt_decoder,
        "prompt-decoder",
        "model/ --data news.txt --data mail.txt --out decoder.safetensors",
    ),
    (TUNER, tuner.tune, "tune", "offer/ --data private.txt --delta lora:rank=8 --out delta/"),
    (BOTH, score.score, "score", "offer/ tuned/ --data test.txt"),
    (
        BOTH,
        lab.lab,
        "lab",
        "model/ --data train.txt --eval-data test.txt --keep 8 --delta lora --out build/lab",
    ),
    (
        BOTH,
        sweep.sweep,
        "sweep",
        "model/ --data train.txt --eval-data test.txt --budgets 0.6,0.3 --out build/sweep",
    ),
    (BOTH, inspecting.report, "report", "build/lab --out lab.html"),
    (BOTH, inspecting.inspect, "inspect", "offer/"),
    (BOTH, inspecting.deltas, "deltas", ""),
    (BOTH, inspecting.recipes, "recipes", ""),
    (BOTH, inspecting.tasks, "tasks", ""),
    (BOTH, demo.demo, "demo", ""),
    (BOTH, publish.card, "card", "offer/ --licence apache-2.0"),
    (BOTH, publish.push, "push", "offer/ owner/tiny-offer"),
    (BOTH, publish.pull, "pull", "owner/tiny-offer --out offer/"),
    (TRUST, signing.keygen, "keygen", ""),
    (TRUST, signing.peer, "peer", "alice alice.pub"),
    (TRUST, signing.sign, "sign", "offer/ --to alice"),
    (TRUST, signing.verify, "verify", "offer/"),
    (TRUST, signing.encrypt, "encrypt", "delta/ --to age1... --out delta.age"),
    (TRUST, signing.decrypt, "decrypt", "delta.age --out delta/"),
)
# of several processes that torchrun starts, one runs these: there is nothing to share in them
ALONE = ("plug", "report", "card", "push", "pull", "keygen", "peer", "sign", "encrypt", "decrypt")


def by_one(function: Callable[..., None]) -> Callable[..., None]:
    """A command that the first of several processes runs and the others leave to it."""

    @wraps(function)
    def run(*args: Any, **options: Any) -> None:
        if main_process():
            function(*args, **options)

    return run


for panel, function, name, words in COMMANDS:
    example = f"Example: offsite {name} {words}".rstrip()
    once = by_one(function) if name in ALONE else function
    app.command(name, rich_help_panel=panel, epilog=example)(once)
app.add_typer(tuner.delta_app, name="delta", rich_help_panel=TUNER)
app.add_typer(audit.audit_app, name="audit", rich_help_panel=BOTH)
app.add_typer(audit.check_app, name="check", rich_help_panel=TUNER)


def main() -> None:
    """Run the command line; whatever goes wrong is one sentence and exit status 2."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, to their callers
    debug = debugging(sys.argv)
    try:
        try:
            prepare()
            with stoppable():
                app()
        except SystemExit as end:
            if (stop := interruption(end)) is not None:
                raise stop from None
            if not end.code:
                if reason := silent():
                    print(reason, file=sys.stderr)
                leave_group()
            raise
        except Exception:
            if debug:
                traceback.print_exc()
            raise
    except OffsiteError as error:
        fail(str(error))
    except OSError as error:
        fail(f"Cannot {unable(error)}: {error.strerror or type(error).__name__}.")
    except KeyboardInterrupt as error:
        print("Interrupted.", file=sys.stderr)
        number = error.number if isinstance(error, Stopped) else int(signal.SIGINT)
        raise SystemExit(128 + number) from None
    except SystemExit:
        raise
    except BaseException as error:  # of any library; that of tokenizers panics beyond Exception
        fail(unexpected(error, sys.argv[1:]))
