"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offsite.errors import OffsiteError

if TYPE_CHECKING:
    from offsite.audit.training import Effort
    from offsite.training.options import TrainOptions

RequireSignature = Annotated[
    bool | None,
    typer.Option(
        "--require-signature/--no-require-signature",
        help="Whether a pinned peer must have signed it; by default yes, once a peer is pinned.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Details = Annotated[
    bool,
    typer.Option(
        "--details",
        help="With --json: a hash of the data, counts and per-item scores too. Keep such a file.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.", min=0, max=2**32 - 1)]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16; by default float32 for what is computed."),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 ...; by default a GPU if there is one.")
]
Task = Annotated[
    str, typer.Option(help="text, chat, image-classification, a built-in task or a task file.")
]
MaxLength = Annotated[int, typer.Option(help="Most tokens of a row of text or of a question.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave unreadable pictures out, with a warning.")
]
Adapter = Annotated[
    str,
    typer.Option(
        help="Adapter blocks: ends:FIRST,LAST, positions such as 0,5,23, or learned:COUNT."
    ),
]
Reach = Annotated[
    str, typer.Option(help="Blocks a delta may tune: adapter, or all (low-rank deltas).")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")]
DpEpsilon = Annotated[
    float | None,
    typer.Option(help="Tune with differential privacy (DP-SGD) and spend this epsilon."),
]
DpDelta = Annotated[float, typer.Option(help="Its delta; below one over the number of examples.")]
DpClip = Annotated[float, typer.Option(help="Its largest gradient norm of one example.")]
FullLr = Annotated[
    str, typer.Option(help="Rates to tune every weight at, of model and offer; the best counts.")
]
MaxRecovered = Annotated[
    float | None,
    typer.Option(help="Write nothing if attackers recover more than this share.", min=0),
]
AuditData = Annotated[
    str | None, typer.Option(help="Public data that attackers have, for --max-recovered.")
]
AttackTokens = Annotated[
    str, typer.Option(help="Training tokens that attackers get, such as 1e5,1e6.")
]
AttackRates = Annotated[
    str, typer.Option(help="Learning rates that attackers try, such as 3e-4,1e-3.")
]
Earlier = Annotated[
    list[Path] | None,
    typer.Option(help="Another offer of this record, which attackers have too; repeatable."),
]
Jobs = Annotated[
    int,
    typer.Option(
        help="Cells to compute at once, each in a process of its own, over all GPUs.", min=1
    ),
]
Calibration = Annotated[str | None, typer.Option(help="The owner's own data.")]
Seeds = Annotated[str, typer.Option(help="Seeds, such as 0,1,2.")]
Model = Annotated[str, typer.Argument(help="Folder or hub name of the full model.")]
Learned = Annotated[
    str | None, typer.Option(help="Folder of a LayerReplace pass ('offsite importance --learn').")
]
Decoder = Annotated[
    Path | None,
    typer.Option(help="A prompt decoder ('offsite prompt-decoder'), or an offer that has it."),
]
BatchSize = Annotated[int, typer.Option(help="Rows per step.", min=1)]

NO_EFFECT_IN_LAB = ("seed", "save_every", "eval_every", "patience")
ATTACK_TOKENS, ATTACK_RATES = "65536,262144", "3e-4,1e-3"  # as in Effort
MAX_LENGTH = 512  # as in load_task
TYPED = "COMMANDLINE"  # how click calls the source of an option that was typed


def typed(context: typer.Context, name: str) -> bool:
    """Whether an option was given, and is not there by its default."""
    return getattr(context.get_parameter_source(name), "name", "") == TYPED


def leave_to_file(context: typer.Context, file: str, allowed: Collection[str]) -> None:
    """Refuse options beside a file that says all but the ``allowed`` ones.

    Raises:
        OffsiteError: an option that would have been ignored.
    """
    given = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in allowed and typed(context, name)
    ]
    if given:
        beside = ", ".join(f"--{name}" for name in allowed if name != "model")
        raise OffsiteError(
            f"The experiment file '{file}' says everything but {beside}, so {', '.join(given)} "
            "would have no effect; write it into the file."
        )


def numbers(text: str, what: str) -> tuple[float, ...]:
    """Numbers separated by commas.

    Raises:
        OffsiteError: anything else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OffsiteError(
            f"'{text}' is not a list of {what}; write numbers such as 1,2,3."
        ) from None


def effort(tokens: str, rates: str = ATTACK_RATES, training: TrainOptions | None = None) -> Effort:
    """What attackers may spend: numbers of tokens and rates, separated by commas.

    Raises:
        OffsiteError: something else, or a number that cannot train.
    """
    from dataclasses import replace

    from offsite.audit.training import Effort
    from offsite.training.options import TrainOptions

    counts, training = numbers(tokens, "numbers of tokens"), training or TrainOptions()
    if not all(1 <= count < 2**40 for count in counts):
        raise OffsiteError(f"'{tokens}' is not a list of numbers of tokens; write such as 1e5,1e6.")
    tried = tuple(replace(training, lr=rate).lr or 0.0 for rate in numbers(rates, "rates"))
    return Effort(tuple(map(int, counts)), tried, training)


def whole_seeds(text: str) -> tuple[int, ...]:
    """Seeds separated by commas.

    Raises:
        OffsiteError: anything else, or one that no generator takes.
    """
    found = numbers(text, "seeds")
    if any(not 0 <= seed < 2**32 or seed % 1 for seed in found):
        raise OffsiteError(
            f"'{text}' is not a list of seeds; write whole numbers from 0, as in 0,1,2."
        )
    return tuple(int(seed) for seed in found)


def check_source(source: str | None) -> None:
    """Refuse a data file that is not there before any model loads."""
    from offsite.tasks.source import Source

    if source is not None:
        Source.of(source).check()
