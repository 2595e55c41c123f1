"""The recipe options of ``offsite offer``, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from offsite.errors import OffsiteError

if TYPE_CHECKING:
    from offsite.compress.recipe import Recipe
    from offsite.model.checkpoint import Checkpoint
    from offsite.model.split import AdapterRule

DEFAULT = 0.5  # share of the middle's bytes where nothing says how much may leave
COPIES = ("int8", "int4", "noise")  # presets that, without a budget, keep every block


@dataclass(frozen=True)
class RecipeOptions:
    """The options of an offer that choose its recipe; each field is one on the command line.

    Attributes:
        recipe: A preset ('offsite recipes' lists them), PRESET@BUDGET or a JSON file of steps.
        keep: Middle blocks to keep.
        budget: Share of the middle's bytes that the emulator may use: above 0, at most 1.
        distill_steps: Steps of distillation after the recipe; 0 removes the preset's own.
        whole: Send every middle block, not half of them.
        learned: Folder that 'offsite importance --learn' wrote, for the ScaleOT presets.
    """

    recipe: str | None = None
    keep: int | None = None
    budget: float | None = None
    distill_steps: int | None = None
    whole: bool = False
    learned: str | None = None

    @property
    def open(self) -> bool:
        """Whether the owner leaves both the recipe and how much leaves to the default."""
        return self.recipe is None and not self.whole and self.keep is None and self.budget is None

    def preset(self, data: bool) -> str:
        """The preset that is asked for, or the default one.

        With ``data`` of the owner that is ``influence``, and ``influence-align`` where nothing else
        is chosen; without data it is ``uniform``.
        """
        if self.recipe is not None:
            return self.recipe
        if self.whole or not data:
            return "uniform"
        return "influence-align" if self.open and self.distill_steps is None else "influence"

    def notice(self, data: bool) -> str | None:
        """What the default recipe is, to be said where it is used."""
        if not self.open:
            return None
        chosen = "No recipe was chosen, so the default is used: "
        chosen += f"--recipe {self.preset(data)} --budget {DEFAULT:g}."
        if data:
            return chosen
        return (
            f"{chosen} It keeps blocks by their position and does not align them; a pretrained "
            "model that is tuned through such an emulator may end worse than untuned. Give --data "
            "FILE, and the default chooses blocks by influence and aligns them."
        )

    def choose(self, model: Checkpoint, adapter: AdapterRule, data: bool) -> Recipe:
        """The recipe for a model; ``data`` says whether the owner gives data of their own.

        Raises:
            OffsiteError: options that contradict each other or have no effect, an unknown preset,
                or nothing that says how much of the middle leaves.
        """
        from offsite.compress.distill import Distill
        from offsite.compress.presets import check_preset
        from offsite.compress.recipe import Recipe
        from offsite.model.split import example_split

        if self.keep is not None and self.budget is not None:
            raise OffsiteError(
                "--keep and --budget both set how much of the middle is sent; give one of them."
            )
        if self.recipe is not None and (self.recipe.endswith(".json") or "@" in self.recipe):
            if replace(self, recipe=None, learned=None) != RecipeOptions():
                raise OffsiteError(
                    f"'{self.recipe}' sets every step already; edit it, or leave out --keep, "
                    "--budget, --distill-steps and --whole."
                )
            return Recipe.parse(self.recipe, model, adapter, learned=self.learned)
        check_preset(preset := self.preset(data))
        share = self.share(len(example_split(adapter, model.total).middle))
        found = Recipe.parse(preset, model, adapter, budget=share, learned=self.learned)
        if self.distill_steps is None:
            return found
        steps = tuple(step for step in found.steps if step.kind != Distill.kind)
        more = (Distill(steps=self.distill_steps),) if self.distill_steps else ()
        return replace(found, steps=(*steps, *more))

    def share(self, blocks: int) -> float:
        """The share of the middle's ``blocks`` that leaves, over 0 to 1.

        Raises:
            OffsiteError: a count out of range, or no choice at all.
        """
        if self.whole:
            if self.keep is not None or self.budget is not None:
                raise OffsiteError("--whole sends every block; use it without --keep and --budget.")
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
                f"'--recipe {self.recipe}' without a budget sends all {blocks} blocks of the "
                "middle, a copy of the model in fewer bits. Say how much to send with --keep "
                "BLOCKS or --budget SHARE, or give --whole if you mean it."
            )
        if self.recipe is None and blocks > 1:
            return DEFAULT
        raise OffsiteError(
            f"The options do not say how many of the middle's {blocks} blocks to send, and all "
            "of them are the whole model. Give --keep BLOCKS or --budget SHARE (--budget 0.4 "
            "--recipe influence-align --data FILE is a good start), or --whole if you mean it."
        )
