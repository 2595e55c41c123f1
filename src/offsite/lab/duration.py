"""Forecast the time that the cells of a plan take, from one forward pass."""

from __future__ import annotations

from collections.abc import Collection

from offsite.compress.forecast import decomposed, decomposing, passes_of, seconds_of
from offsite.lab.cells import Cell
from offsite.lab.lab import Lab
from offsite.model.blocks import get_blocks
from offsite.training.devices import fork_generators
from offsite.training.train import total_steps

ROWS = 4  # of the batch that is timed
STEP = 3  # passes that a training step counts as: one forward, and one back of twice its length


def seconds(lab: Lab, cells: Collection[Cell]) -> dict[Cell, float]:
    """About how many seconds each cell takes: passes over a row, times the time of one pass.

    The matrices that a recipe decomposes count beside them, as if no block were adapter. An
    emulator counts as the full model does, so a cell that tunes it may take less.
    """
    setting = lab.setting
    scored = setting.rows(setting.data.evaluation, setting.loaded)
    batch = setting.task.collate([scored[i % len(scored)] for i in range(ROWS)])
    with fork_generators():
        each = seconds_of(setting.model, batch) / ROWS
    passed = {cell: rows_passed(lab, cell, len(scored)) for cell in cells}
    recipes = {cell.recipe for cell in cells if cell.stage == "offer"}
    matrices = {name: decomposing_in(lab, name) for name in recipes}
    return {
        cell: rows * each + (matrices[cell.recipe] if cell.stage == "offer" else 0.0)
        for cell, rows in passed.items()
    }


def decomposing_in(lab: Lab, recipe: str) -> float:
    """Seconds for the matrices that a recipe decomposes."""
    model = lab.setting.model
    blocks, device = range(len(get_blocks(model))), next(model.parameters()).device
    steps = lab.recipes[recipe].steps
    return sum(decomposing(decomposed(step, model, blocks), device) for step in steps)


def rows_passed(lab: Lab, cell: Cell, scored: int) -> float:
    """How many forward passes over one row a cell takes.

    Args:
        scored: rows of the evaluation data.
    """
    setting, total = lab.setting, len(get_blocks(lab.setting.loaded))
    if cell.training is not None:
        return 0  # the offer that is made from it counts it
    if cell.stage == "zero_shot":
        return scored
    if cell.stage == "offer":
        steps = lab.recipes[cell.recipe].steps
        rows = setting.public_rows()
        return scored + sum(passes_of(step.needs, rows, total) for step in steps)
    if cell.stage == "decoded":
        how = lab.plan.decode[cell.decode]  # a step runs both emulators and both models
        return 2 * scored + (STEP + 3) * how.steps * how.batch_size
    options = setting.options
    private = setting.private_rows(setting.loaded)
    trained = total_steps(options, len(private)) * options.batch_size * options.accumulate
    if cell.stage == "tuned":
        return 2 * scored + STEP * trained
    return scored + STEP * trained + cell.tokens / lab.plan.max_length * STEP
