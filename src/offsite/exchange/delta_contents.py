"""What a delta may hold: its files, the options of its method, and its names of classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from offsite.errors import OffsiteError
from offsite.exchange.file_set import README
from offsite.exchange.manifest import MAX_LABEL, MAX_LABELS, DeltaManifest
from offsite.exchange.side import HEAD, side_file
from offsite.files import read_json, shown
from offsite.model.tensors import TensorEntry

WEIGHTS = "delta.safetensors"
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
FILES = {"tensors": (WEIGHTS,), "peft": (PEFT_WEIGHTS, PEFT_CONFIG)}
MAX_SMALL_BYTES = 4 * 1024 * 1024
# options of peft that lead to code, to other models, or to tensors outside the adapter blocks
PEFT_REFUSED = (
    "auto_mapping", "base_model_name_or_path", "modules_to_save", "trainable_token_indices",
    "target_parameters", "layer_replication", "megatron_config", "revision",
)  # fmt: skip


def check_contents(folder: Path, manifest: DeltaManifest) -> None:
    """Refuse files a delta may not hold, and options that would cost its reader memory or more.

    Plugging never reads ``adapter_config.json``; it is checked for those who open it with peft.

    Raises:
        OffsiteError: other files than the format's own, a hostile peft configuration, or a method
            whose numbers exceed the tensors that came with it.
    """
    needed = (*FILES[manifest.format], *([side_file(HEAD)] if manifest.head else []))
    if odd := sorted((set(manifest.files) - {README}) ^ set(needed)):
        state = "lacks" if odd[0] in needed else "holds"
        raise OffsiteError(
            f"'{folder}' {state} '{odd[0]}'; a delta of this format has the files "
            f"{', '.join(needed)} and nothing else but a {README}, so ask for a fresh copy."
        )
    side = [n for n in manifest.files if not n.endswith(".safetensors")]
    if any(manifest.files[n].size > MAX_SMALL_BYTES for n in side):
        raise OffsiteError(
            f"'{folder}' has a file of more than {MAX_SMALL_BYTES} bytes besides its tensors; ask "
            "for a fresh copy."
        )
    if manifest.format == "peft":
        config = read_json(folder / PEFT_CONFIG)
        if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
            raise OffsiteError(
                f"The {PEFT_CONFIG} of '{folder}' does not name a peft method; ask for a fresh "
                "copy."
            )
        for key in PEFT_REFUSED:
            if config.get(key):
                raise OffsiteError(
                    f"The {PEFT_CONFIG} of '{folder}' sets '{key}', which a delta may not; import "
                    "an adapter that tunes only the adapter blocks."
                )
        sizes = {k: v for k, v in config.items() if not k.endswith("key") and not is_flag(v)}
        check_options(sizes, manifest.tensors, "peft configuration")
    check_options(manifest.method, manifest.tensors)


def is_flag(value: Any) -> bool:
    """Whether a value of a configuration is text or a switch, which has no size."""
    return isinstance(value, (str, bool))


def check_options(
    method: Mapping[str, Any], tensors: Mapping[str, TensorEntry], what: str = "method"
) -> None:
    """Refuse options of a method that exceed the tensors that come with it.

    Raises:
        OffsiteError: a number larger than any dimension of a tensor (4096 is always allowed; a seed
            may be any), or a number written as text.
    """
    largest = max((n for entry in tensors.values() for n in entry.shape), default=0)
    for key, value in options(method):
        digits = isinstance(value, str) and is_number(value)
        large = isinstance(value, (int, float)) and abs(value) > max(largest, 4096)
        if digits or (large and key != "seed"):
            raise OffsiteError(
                f"The delta's {what} sets '{shown(key)}' to more than its tensors can hold; ask "
                "its sender to make it again."
            )


def is_number(text: str) -> bool:
    """Whether a text would be read as a number, ``inf`` and ``nan`` included."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def options(method: Any) -> Iterator[tuple[str, Any]]:
    """Every option of a method in JSON form, of the methods in a combination too."""
    for key, value in method.items():
        yield key, value
        for part in value if isinstance(value, (list, tuple)) else ():
            yield from options(part) if isinstance(part, dict) else ()


def check_labels(labels: Sequence[str]) -> None:
    """Refuse names of classes that a manifest cannot hold, by their number: they are private.

    Raises:
        OffsiteError: too many, one too long, or one with characters that cannot be seen.
    """
    if len(labels) > MAX_LABELS:
        raise OffsiteError(
            f"There are {len(labels)} classes, but a delta names {MAX_LABELS} at most; join some "
            "of them."
        )
    for number, label in enumerate(labels, start=1):
        if len(label) > MAX_LABEL or not label.isprintable():
            raise OffsiteError(
                f"The name of class {number} cannot travel with a delta; rename it to at most "
                f"{MAX_LABEL} printable characters."
            )
