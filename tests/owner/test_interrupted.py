"""An offer whose making Ctrl-C interrupts, in any of its steps, and ``resume`` finishes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.compress.distill import Distill
from offsite.compress.scaleot.learned import STATE
from offsite.compress.scaleot.step import LayerReplace
from offsite.compress.scaleot.training import Training
from offsite.errors import OffsiteError
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.tasks.text.causal import CausalText
from offsite.training.resume import Interrupted
from tests.support.context import rows
from tests.support.models import language_model
from tests.support.signals import Interrupt

LEARN = LayerReplace(alpha=0.5, steps=6, rank=2, batch_size=2)
RECIPE = (LEARN, Distill(steps=4, lr=1e-3, batch_size=2), Distill(steps=3, lr=1e-2, batch_size=2))


def make(task: Any = None, recipe: Any = RECIPE, **more: Any) -> dict[str, torch.Tensor]:
    options = {"adapter": ends(1, 1), "data": rows(), "seed": 3, "device": "cpu"}
    task = task or CausalText(max_length=16)
    offer, _ = make_offer(language_model("llama"), recipe=recipe, task=task, **{**options, **more})
    return {name: value.clone() for name, value in offer.model.state_dict().items()}


@pytest.fixture(scope="module")
def unbroken() -> dict[str, torch.Tensor]:
    return make()


def test_every_step_can_be_interrupted(unbroken: Any, interrupt: Interrupt, tmp_path: Path) -> None:
    calls = []

    class Counting(CausalText):
        def loss(self, *args: Any) -> torch.Tensor:
            calls.append(1)
            return super().loss(*args)

    make(Counting(max_length=16))
    learning = len(calls) - 7
    assert learning > 12
    for stop, steps in ((learning + 2, 4), (learning + 6, 3)):
        work = tmp_path / str(stop)
        with pytest.raises(Interrupted, match=f"of {steps}; .* --resume to continue"):
            interrupt(CausalText, "loss", call=stop)
            make(work=work)
        resumed = make(work=work, resume=True)
        assert all(torch.equal(value, unbroken[name]) for name, value in resumed.items()), stop


def test_learning_importance_goes_on_where_it_was_saved(
    unbroken: Any, interrupt: Interrupt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(CausalText, "loss", call=9)
    with pytest.raises(KeyboardInterrupt):  # nothing to resume yet, and nothing left
        make(work=tmp_path / "work")
    assert not any(tmp_path.iterdir())
    often = partial(Training, save_every=2)
    monkeypatch.setattr(LayerReplace, "training", property(lambda _: often(6, 2, batch_size=2)))
    interrupt(CausalText, "loss", call=9)
    with pytest.raises(Interrupted, match="--resume to continue"):
        make(work=tmp_path / "work")
    assert (tmp_path / "work" / "0" / STATE).is_dir()
    resumed = make(work=tmp_path / "work", resume=True)
    assert all(torch.equal(value, unbroken[name]) for name, value in resumed.items())


def test_only_the_same_offer_is_resumed(interrupt: Interrupt, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with pytest.raises(OffsiteError, match="nothing to resume"):
        make(work=work, resume=True)
    interrupt(CausalText, "loss", call=2)
    with pytest.raises(Interrupted):
        make(recipe=RECIPE[1:], work=work)
    before = sorted(path.name for path in work.rglob("*"))
    for change, word in (
        ({"recipe": RECIPE}, "recipe"),
        ({"seed": 4}, "seed"),
        ({"adapter": ends(2, 1)}, "adapter"),
        ({"data": rows()[:-1]}, "data"),
        ({"data": [rows()[1], *rows()[1:]]}, "data"),
        ({"task": CausalText(max_length=8)}, "task.max_length"),
        ({"dtype": torch.bfloat16}, "dtype"),
    ):
        with pytest.raises(OffsiteError, match=f"started with another {word};"):
            make(work=work, resume=True, **{"recipe": RECIPE[1:], **change})
    assert sorted(path.name for path in work.rglob("*")) == before
