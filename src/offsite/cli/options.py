"""Options that several commands share, and how their texts are parsed."""

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
        help="Require the signature of a pinned peer. This is the default once you pinned a peer.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Details = Annotated[
    bool,
    typer.Option(
        "--details",
        help="With --json, add a hash of the data, counts and per-item scores. Do not send this.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.", min=0, max=2**32 - 1)]
Dtype = Annotated[
    str | None,
    typer.Option(help="Precision of the weights: float32, bfloat16 or float16."),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 ...; by default a GPU if there is one.")
]
Task = Annotated[
    str, typer.Option(help="text, chat, image-classification, a built-in task or a task file.")
]
MaxLength = Annotated[int, typer.Option(help="Largest number of tokens in a row or question.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Skip unreadable pictures, with a warning.")
]
Adapter = Annotated[
    str,
    typer.Option(
        help="Adapter blocks: ends:FIRST,LAST, positions such as 0,5,23, or learned:COUNT."
    ),
]
Reach = Annotated[
    str, typer.Option(help="Blocks that a delta may tune: adapter, or all (for LoRA).")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
DpEpsilon = Annotated[
    float | None,
    typer.Option(help="Tune with differential privacy (DP-SGD) and spend at most this epsilon."),
]
DpDelta = Annotated[
    float, typer.Option(help="Delta of --dp-epsilon; below 1 / number of examples.")
]
DpClip = Annotated[float, typer.Option(help="Largest gradient norm of an example.")]
FullLr = Annotated[
    str,
    typer.Option(help="Learning rates for full fine-tuning and for healing; the best one counts."),
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
    typer.Option(help="Processes that compute cells at the same time, on all GPUs.", min=1),
]
Calibration = Annotated[
    str | None, typer.Option(help="The model owner's data, for steps that measure or train.")
]
Seeds = Annotated[str, typer.Option(help="Seeds, such as 0,1,2.")]
Model = Annotated[str, typer.Argument(help="Folder or hub name of the full model.")]
Learned = Annotated[
    str | None,
    typer.Option(help="Folder that 'offsite importance --learn' wrote, for the ScaleOT presets."),
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
    """Refuse options that a file sets already: all but the ``allowed`` ones.

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
            f"The experiment file '{file}' sets everything but {beside}, so {', '.join(given)} "
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
        raise OffsiteError(f"'{tokens}' is not a list of token counts; write it as in 1e5,1e6.")
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
            f"'{text}' is not a list of seeds; write whole numbers of 0 or more, as in 0,1,2."
        )
    return tuple(int(seed) for seed in found)


def check_source(source: str | None) -> None:
    """Refuse a data file that is not there before any model loads."""
    from offsite.tasks.source import Source

    if source is not None:
        Source.of(source).check()
