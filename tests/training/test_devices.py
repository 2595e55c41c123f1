"""Which device computes, where torch was built for an accelerator and the machine has none."""

from __future__ import annotations

import pytest
import torch

from offsite.errors import OffsiteError
from offsite.training.devices import available_accelerator, fork_generators, pick_device


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch's own packages for CUDA answer on a machine without a card."""

    def missing() -> int:
        raise RuntimeError("No CUDA GPUs are available")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_device_index", missing)


@pytest.mark.usefixtures("no_card")
def test_a_build_for_cuda_without_a_card_computes_on_the_cpu() -> None:
    assert available_accelerator() is None
    assert pick_device() == torch.device("cpu")


@pytest.mark.usefixtures("no_card")
def test_generators_go_back_where_a_build_for_cuda_has_no_card() -> None:
    before = torch.get_rng_state()
    with fork_generators(7):
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["meta", "abc"])
def test_a_device_that_computes_nothing_is_refused(name: str) -> None:
    with pytest.raises(OffsiteError, match="There is no device"):
        pick_device(name)
