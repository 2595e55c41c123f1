"""Run by torchrun: tune as on GPUs, where steps are recorded and their gradients averaged apart.

Takes the arguments of ``offsite``. A recorder that never records stands in, since recording takes a
GPU.
"""

from __future__ import annotations

from unittest.mock import patch

from offsite.cli import main
from offsite.training import memory, recording


def run() -> None:
    """Give every run a recorder, and fail if no gradient was averaged."""
    with (
        patch("offsite.training.train.can_record", lambda *_: True),
        patch.object(recording, "WARM", 10**9),
        patch.object(memory, "average", wraps=memory.average) as average,
    ):
        try:
            main()
        finally:
            assert average.call_count


if __name__ == "__main__":
    run()
