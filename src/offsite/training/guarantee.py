"""What a differentially private training run promises, as the manifest of a delta says it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Guarantee(BaseModel):
    """An (epsilon, delta) guarantee for adding or removing one example of the training data.

    Attributes:
        epsilon, delta: spent by the run (Dwork and Roth 2014, definition 2.4).
        unit: what is protected: one row of the data file. Several rows about one person are not.
        accountant: how epsilon was computed: ``"prv"`` is the numerical composition of Gopi et al.
            (arXiv 2106.02848).
        noise_multiplier: standard deviation of the noise over ``clip``.
        clip: largest L2 norm of the gradient of one example.
        noise: where the noise and the sampling come from: ``"os.urandom"``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    epsilon: Positive
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: Literal["example"] = "example"
    accountant: Literal["prv", "rdp"] = "prv"
    noise_multiplier: Positive
    clip: Positive
    noise: Literal["os.urandom"] = "os.urandom"
