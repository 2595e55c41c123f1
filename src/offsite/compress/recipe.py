"""A recipe: the steps that make an emulator, and the forms in which it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offsite.compress import parse_recipe
from offsite.compress.presets import Shape, check_preset, make_recipe
from offsite.compress.scaleot.training import Training
from offsite.compress.step import Step, plan, recipe_identity
from offsite.errors import OffsiteError
from offsite.files import read_json
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import AdapterRule, ends, example_split, learned, parse_adapter

CLASSIC = ends(2, 2)


@dataclass(frozen=True)
class Recipe:
    """The steps that make an emulator, and the adapter they are made for.

    Attributes:
        steps: the compression steps, in order.
        adapter: which blocks are adapter. ``learned(COUNT)`` takes those that the recipe's own
            LayerReplace pass finds most important, as ScaleOT chooses them.
    """

    steps: tuple[Step, ...]
    adapter: AdapterRule = CLASSIC

    @classmethod
    def parse(
        cls,
        value: Any,
        model: Checkpoint,
        adapter: AdapterRule,
        *,
        budget: float | None = None,
        learned: str | None = None,
    ) -> Recipe:
        """A recipe in any of its written forms.

        Args:
            value: a preset at a budget (``"crash@0.45"``), a preset, the name of a JSON file of
                steps, a list of steps in JSON form, or a table
                ``{"recipe": ANY OF THESE, "adapter": "0,1,22,23"}``.
            model: the model to compress; only its shape is read, and only for a preset.
            adapter: which blocks are adapter, unless a table says otherwise.
            budget: share of the middle's bytes for a preset that is written without one; None for
                the whole middle.
            learned: folder of a LayerReplace pass, so that a ScaleOT preset does not run one.

        Raises:
            OffsiteError: an unknown preset or step, a budget that is not a number from 0 to 1, or
                any other form.
        """
        if isinstance(value, Mapping):
            if odd := sorted(set(value) - {"adapter", "recipe", "steps"}):
                raise OffsiteError(
                    f"A recipe cannot have '{odd[0]}'; it has 'recipe' and 'adapter'."
                )
            rule = parse_adapter(str(value["adapter"])) if "adapter" in value else adapter
            inner = value.get("recipe", value.get("steps"))
            return cls.parse(inner, model, rule, budget=budget, learned=learned)
        if not isinstance(value, str):
            return cls(tuple(parse_recipe(value)), adapter)
        if value.endswith(".json"):
            return cls(tuple(parse_recipe(read_json(value))), adapter)
        preset, _, share = value.partition("@")
        check_preset(preset)
        try:
            wanted = float(share) if share else 1.0 if budget is None else budget
        except ValueError:
            raise OffsiteError(
                f"'{value}' is not a recipe; write PRESET@BUDGET, such as crash@0.45."
            ) from None
        shape = Shape.of(model, adapter)
        return cls(tuple(make_recipe(preset, shape, wanted, learned=learned)), adapter)

    @property
    def trainings(self) -> tuple[Training, ...]:
        """The LayerReplace passes that its steps need, each once, in their order."""
        passes = (step.needs.own_pass for step in self.steps)
        return tuple(dict.fromkeys(own.training for own in passes if own is not None))

    def check(self, blocks: int) -> None:
        """Refuse an adapter or a number of kept blocks that a model of ``blocks`` cannot have."""
        plan(self.steps, example_split(self.adapter, blocks).middle, 0)

    def check_learned(self, folder: str | None) -> None:
        """Refuse the folder of a LayerReplace pass that no step reads.

        Raises:
            OffsiteError: saying what would read it.
        """
        used = any(step.needs.learned == folder for step in self.steps)
        if folder is not None and not used and not isinstance(self.adapter, learned):
            raise OffsiteError(
                "--learned has no effect: no step of this recipe reads it. Remove it, or use "
                "--adapter learned:COUNT."
            )

    def key(self, seed: int) -> dict[str, Any]:
        """What an offer made with it depends on, as JSON."""
        steps = recipe_identity(self.steps)
        return {"adapter": str(self.adapter), "recipe": steps, "seed": seed}
