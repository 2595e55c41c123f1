"""A recipe as the command line writes it: a preset, with blocks to keep or a budget, or a file."""

from __future__ import annotations

from dataclasses import dataclass

from offsite.compress import parse_recipe
from offsite.compress.distill import Distill
from offsite.compress.presets import PRESETS, Shape, make_recipe, unknown_preset
from offsite.compress.step import Step
from offsite.errors import OffsiteError
from offsite.files import read_json
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import AdapterRule, example_split

DEFAULT = 0.5  # share of the middle's bytes where nothing says how much may leave
COPIES = ("int8", "int4", "noise")  # presets that, without a budget, keep every block


@dataclass(frozen=True)
class RecipeChoice:
    """What an owner asks for.

    Attributes:
        recipe: a preset, or a JSON file that holds all steps; None for :attr:`preset`.
        keep: middle blocks to keep.
        budget: share of the middle's bytes that the emulator may take, over 0 to 1.
        distill_steps: steps of distillation after the recipe; 0 takes away a preset's own.
        learned: folder of a LayerReplace pass.
        whole: ship every block of the middle, which otherwise is refused.
        data: whether the owner gives data of their own.
    """

    recipe: str | None = None
    keep: int | None = None
    budget: float | None = None
    distill_steps: int | None = None
    learned: str | None = None
    whole: bool = False
    data: bool = False

    @property
    def open(self) -> bool:
        """Whether the owner leaves both the recipe and how much leaves to the default."""
        return self.recipe is None and not self.whole and self.keep is None and self.budget is None

    @property
    def preset(self) -> str:
        """The preset that is asked for, or the default one.

        With data that is ``influence``, and ``influence-align`` where nothing else is chosen;
        without data it is ``uniform``.
        """
        if self.recipe is not None:
            return self.recipe
        if self.whole or not self.data:
            return "uniform"
        return "influence-align" if self.open and self.distill_steps is None else "influence"

    @property
    def notice(self) -> str | None:
        """What the default recipe is, to be said where it is used."""
        if not self.open:
            return None
        chosen = f"No recipe was chosen, so the default is used: --recipe {self.preset} --budget"
        if self.data:
            return f"{chosen} {DEFAULT:g}."
        return (
            f"{chosen} {DEFAULT:g}. It keeps blocks by their position and does not align them; a "
            "pretrained model that is tuned through such an emulator may end worse than untuned. "
            "Give --data FILE, and the default chooses blocks by influence and aligns them."
        )

    def steps(self, checkpoint: Checkpoint, rule: AdapterRule) -> list[Step]:
        """The steps for a model whose adapter follows ``rule``.

        Raises:
            OffsiteError: options that contradict each other or have no effect, an unknown preset,
                or nothing that says how much of the middle leaves.
        """
        if self.keep is not None and self.budget is not None:
            raise OffsiteError(
                "--keep and --budget both say how much of the middle leaves; use one."
            )
        if self.recipe is not None and self.recipe.endswith(".json"):
            if (self.keep, self.budget, self.distill_steps, self.whole) != (
                None,
                None,
                None,
                False,
            ):
                raise OffsiteError(
                    f"The file '{self.recipe}' holds the whole recipe; write into it what --keep, "
                    "--budget, --distill-steps and --whole say."
                )
            return parse_recipe(read_json(self.recipe))
        if self.recipe is not None and self.recipe not in PRESETS:
            raise unknown_preset(self.recipe)
        shape = Shape(checkpoint.skeleton, example_split(rule, checkpoint.total))
        steps = make_recipe(
            self.preset,
            shape,
            self.share(shape.blocks),
            learned=self.learned,
        )
        if self.distill_steps is not None:
            steps = [step for step in steps if step.kind != Distill.kind]
            steps += [Distill(steps=self.distill_steps)] if self.distill_steps else []
        return steps

    def share(self, blocks: int) -> float:
        """The share of the middle's ``blocks`` that leaves, over 0 to 1.

        Raises:
            OffsiteError: a count out of range, or no choice at all.
        """
        if self.whole:
            if self.keep is not None or self.budget is not None:
                raise OffsiteError("--whole ships every block; use it without --keep and --budget.")
            return 1.0
        if self.keep is not None:
            if not 1 <= self.keep <= blocks:
                raise OffsiteError(
                    f"Cannot keep {self.keep} of {blocks} middle blocks; choose 1 to {blocks}."
                )
            return self.keep / blocks
        if self.budget is not None:
            return self.budget
        if self.recipe in COPIES:
            raise OffsiteError(
                f"'--recipe {self.recipe}' without a budget ships all {blocks} blocks of the "
                "middle, which is a copy of the model in fewer bits; choose how much may leave "
                "with --keep BLOCKS or --budget SHARE, or add --whole if you mean it."
            )
        if self.recipe is None and blocks > 1:
            return DEFAULT
        raise OffsiteError(
            f"Nothing says how much of the middle's {blocks} blocks may leave, and the offer would "
            "hold the whole model; choose with --keep BLOCKS or --budget SHARE (--budget 0.4 "
            "--recipe influence-align --data FILE is a good start), or add --whole if you mean it."
        )


def check_learned(folder: str | None, steps: list[Step], rule: AdapterRule) -> None:
    """Refuse the folder of a LayerReplace pass that nothing reads.

    Raises:
        OffsiteError: saying what would read it.
    """
    used = any(step.needs.learned == folder for step in steps)
    if folder is not None and not used and not str(rule).startswith("learned:"):
        raise OffsiteError(
            "--learned has no effect: no step of this recipe reads it. Remove it, or use --adapter "
            "learned:COUNT."
        )


def cost(steps: list[Step], max_length: int | None) -> list[str]:
    """What a recipe computes on the owner's data, one line a step, to be said before it begins.

    Args:
        max_length: most tokens of a row; None for rows that are not text.
    """
    lines = []
    for step in steps:
        if rows := step.needs.rows:
            tokens = f", at most {rows * max_length:,} tokens" if max_length else ""
            lines.append(f"{step.kind}: {rows:,} rows of data{tokens}")
    return lines
