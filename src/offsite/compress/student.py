"""Train a middle as the student of the full middle, for distillation and alignment."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import nn

from offsite.compress.step import Context
from offsite.model.split import Middle, join


def make_student(middle: Middle, context: Context) -> tuple[Middle, nn.Module]:
    """A copy of the middle whose floating-point parameters train, and its frozen emulator."""
    student = copy_middle(middle)
    emulator, _ = join(context.model, context.split, student)
    emulator.requires_grad_(False)
    for block in student.blocks:
        for parameter in block.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    return student, emulator


def copy_middle(middle: Middle) -> Middle:
    """The middle with its own tensors; what was shared between blocks stays shared."""
    return replace(middle, blocks=tuple(copy.deepcopy(list(middle.blocks))))


class Taught(nn.Module):
    """The student's blocks as trainable state; a teacher is kept out of sight of the optimiser."""

    def __init__(self, student: Middle) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(student.blocks)

    def train(self, mode: bool = True) -> Taught:
        """Never: dropout would move a student that is its teacher already."""
        return super().train(False)
