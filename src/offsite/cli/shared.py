"""Groups of options that several commands share, and what the commands make of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offsite.cli import options as o
from offsite.errors import OffsiteError
from offsite.training.options import TrainOptions

if TYPE_CHECKING:
    import torch

    from offsite.audit.gate import Gate
    from offsite.lab.plan import Plan
    from offsite.tasks.task import Task
    from offsite.training.dp import PrivacyBudget


@dataclass(frozen=True)
class RowOptions:
    """What kind of rows the data holds, and how they are read."""

    task: o.Task = "text"
    max_length: o.MaxLength = o.MAX_LENGTH
    skip_bad: o.SkipBad = False

    def load(self) -> Task:
        """The task that they describe.

        Raises:
            OffsiteError: no such task, or one that a length does not suit.
        """
        from offsite.tasks import load_task

        return load_task(self.task, max_length=self.max_length, skip_bad=self.skip_bad)


@dataclass(frozen=True)
class Machine:
    """Where to compute, and in which precision."""

    dtype: o.Dtype = None
    device: o.Device = None

    def pick(self) -> torch.device:
        """The device to compute on.

        Raises:
            OffsiteError: one that is not there.
        """
        from offsite.training.devices import pick_device

        return pick_device(self.device)

    def precision(self, default: str | None = None) -> torch.dtype | None:
        """The precision to hold weights in; None for that of the checkpoint.

        Raises:
            OffsiteError: one that nothing is computed in.
        """
        from offsite.model.checkpoint import parse_dtype

        return parse_dtype(self.dtype or default)


@dataclass(frozen=True)
class DpOptions:
    """How much the delta may tell about one example."""

    dp_epsilon: o.DpEpsilon = None
    dp_delta: o.DpDelta = 1e-5
    dp_clip: o.DpClip = 1.0

    def budget(self) -> PrivacyBudget | None:
        """The budget of differential privacy; None where none is asked for."""
        from offsite.training.dp import PrivacyBudget

        if self.dp_epsilon is None:
            return None
        return PrivacyBudget(self.dp_epsilon, self.dp_delta, self.dp_clip)


@dataclass(frozen=True)
class GateOptions:
    """What attackers may recover of an offer before it is kept back."""

    max_recovered: o.MaxRecovered = None
    audit_data: o.AuditData = None
    audit_tokens: o.AttackTokens = o.ATTACK_TOKENS
    earlier: o.Earlier = None

    def load(self, task: Task) -> Gate | None:
        """The gate, with its data read; None where none is asked for.

        Raises:
            OffsiteError: a limit without data to attack with, data without a limit, or malformed
                data.
        """
        if self.max_recovered is None and (self.audit_data is not None or self.earlier):
            raise OffsiteError(
                "--audit-data and --earlier have no effect without --max-recovered; give it, or "
                "leave them out."
            )
        from offsite.audit.gate import make_gate
        from offsite.tasks.data import read_data

        public = read_data(task, self.audit_data, train=True)
        effort = o.effort(self.audit_tokens)
        return make_gate(self.max_recovered, public, effort, self.earlier or ())


@dataclass(frozen=True)
class GridOptions:
    """What every cell of a lab has in common, besides its data."""

    calibration: o.Calibration = None
    adapter: o.Adapter = "ends:2,2"
    seeds: o.Seeds = "0"
    full_lr: o.FullLr = "1e-4,3e-4,1e-3"
    jobs: o.Jobs = 1

    def plan(
        self,
        model: str,
        data: str | None,
        eval_data: str,
        rows: RowOptions,
        machine: Machine,
        training: TrainOptions,
        **grid: Any,
    ) -> Plan:
        """A plan of the lab; ``grid`` holds its recipes, its deltas and what else it is to do.

        Raises:
            OffsiteError: seeds or learning rates that are not numbers.
        """
        from offsite.lab.plan import Plan

        return Plan(
            model=model,
            data=data,
            eval_data=eval_data,
            task=rows.task,
            max_length=rows.max_length,
            skip_bad=rows.skip_bad,
            seeds=o.whole_seeds(self.seeds),
            full_lr=o.numbers(self.full_lr, "learning rates"),
            options=training,
            dtype=machine.dtype or "float32",
            calibration=self.calibration,
            **grid,
        )
