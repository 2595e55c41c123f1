"""The environment of a figure: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from offsite.exchange.manifest import tool_versions
from offsite.training.devices import available_accelerator


def merged(environments: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Several environments as one: where they differ, all values in the order of appearance."""
    found: dict[str, dict[str, None]] = {}
    for one in environments:
        for key, value in one.items():
            found.setdefault(key, {})[value] = None
    return {key: ", ".join(values) for key, values in found.items()}


def environment() -> dict[str, str]:
    """Machine, accelerator, versions and (in a checkout) the commit."""
    device = available_accelerator()
    found = {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else str(device or "cpu"),
        **tool_versions(),
    }
    if "OFFSITE_COMMIT" in os.environ:  # a copy of the tree without its history
        return {**found, "commit": os.environ["OFFSITE_COMMIT"]}
    with suppress(OSError):  # there need be no git
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        if commit.returncode == 0:
            found["commit"] = commit.stdout.strip()
    return found
