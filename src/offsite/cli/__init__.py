"""The command line: one thin function per command, heavy imports inside them."""

from __future__ import annotations

import sys
import warnings

import typer

from offsite.cli import demo, exchange, importance, look, owner, prompts, research, sweep, tuner
from offsite.errors import OffsiteError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune a model without its owner seeing the data, or the data's owner the model.",
)
OWNER, TUNER, BOTH = "Model owner", "Data owner", "Both, and researchers"
app.command("offer", rich_help_panel=OWNER)(owner.offer)
app.command("plug", rich_help_panel=OWNER)(owner.plug)
app.command("importance", rich_help_panel=OWNER)(importance.importance)
app.command("prompt-decoder", rich_help_panel=OWNER)(prompts.prompt_decoder)
app.command("tune", rich_help_panel=TUNER)(tuner.tune)
app.add_typer(tuner.delta_app, name="delta", rich_help_panel=TUNER)
app.command("score", rich_help_panel=BOTH)(research.score)
app.command("lab", rich_help_panel=BOTH)(research.lab)
app.command("sweep", rich_help_panel=BOTH)(sweep.sweep)
app.command("report", rich_help_panel=BOTH)(look.report)
app.command("inspect", rich_help_panel=BOTH)(look.inspect)
app.command("deltas", rich_help_panel=BOTH)(look.deltas)
app.command("recipes", rich_help_panel=BOTH)(look.recipes)
app.command("tasks", rich_help_panel=BOTH)(look.tasks)
app.command("demo", rich_help_panel=BOTH)(demo.demo)
app.command("card", rich_help_panel=BOTH)(exchange.card)
app.command("push", rich_help_panel=BOTH)(exchange.push)
app.command("pull", rich_help_panel=BOTH)(exchange.pull)


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
