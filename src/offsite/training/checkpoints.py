"""Checkpoints of the Trainer with hashes, so that damage is found.

The Trainer writes ``checkpoint-N`` in place. Once all of it is there its files are flushed to the
disk and their hashes noted in :data:`SEAL`, in one rename: from then on the checkpoint counts. A
run is resumed from the newest one whose files are exactly those.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from offsite.errors import OffsiteError
from offsite.files import disk_full, read_json, sha256_file, sync, write_file
from offsite.training.processes import main_process

SEAL = "checksums.json"
logger = logging.getLogger(__name__)


class Sealing(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Seals every checkpoint once all processes have written their part of it."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the checkpoint that the Trainer has just written."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


def seal(checkpoint: Path) -> None:
    """Flush the files of a checkpoint and note their hashes."""
    hashes = {}
    for path in files(checkpoint):
        sync(path)
        hashes[str(path.relative_to(checkpoint))] = sha256_file(path)
    sync(checkpoint)
    write_file(checkpoint / SEAL, json.dumps(hashes, indent=1) + "\n")


def files(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint besides its seal."""
    return sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != SEAL)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    if not (checkpoint / SEAL).is_file():
        return "it was not finished"
    try:
        hashes = read_json(checkpoint / SEAL)
        present = {str(path.relative_to(checkpoint)): path for path in files(checkpoint)}
        if not isinstance(hashes, dict) or hashes.keys() != present.keys():
            return "a file is missing or was added"
        changed = [name for name, path in present.items() if sha256_file(path) != hashes[name]]
    except (OffsiteError, OSError):
        return "it cannot be read"
    return f"'{changed[0]}' was changed" if changed else None


def newest_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that verifies; those that do not are removed, and a warning says so."""
    numbers = [path.name.rpartition("-")[2] for path in work.glob(f"{PREFIX_CHECKPOINT_DIR}-*")]
    for step in sorted((int(n) for n in numbers if n.isdigit()), reverse=True):
        checkpoint = work / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if (reason := damage(checkpoint)) is None:
            return checkpoint
        logger.warning("Passed over the checkpoint '%s': %s.", checkpoint, reason)
        if main_process():
            shutil.rmtree(checkpoint, ignore_errors=True)
    logger.warning("'%s' holds no whole checkpoint; the run starts from the beginning.", work)
    return None


@contextmanager
def saving(work: Path | None) -> Iterator[None]:
    """Turn a full disk during training into one sentence; earlier checkpoints are untouched.

    Raises:
        OffsiteError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        if work is None or not disk_full(error):
            raise
        raise OffsiteError(
            f"Cannot write a checkpoint in '{work}': the disk is full; the checkpoints before it "
            "are kept, so free some space and run the same command with --resume."
        ) from error
