"""The tokenizer or image processor of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers.utils import cached_file

from offsite.errors import OffsiteError
from offsite.files import is_pointer, reason, shown
from offsite.model.kind import Kind
from offsite.model.quiet import quiet

PACKAGES = {"PIL": "pillow", "sentencepiece": "sentencepiece", "protobuf": "protobuf"}
PROBE = "The quick brown fox, 12 345 caf\u00e9s;\n\tif x_1 >= 2: return '\u4f60\u597d'  # end"


def read_processor(
    name: str | Path, kind: Kind, label: str | Path | None = None, *, config: Any = None
) -> Any:
    """The tokenizer (text) or image processor (images) of a folder or hub name.

    Args:
        label: what messages call the model.
        config: its configuration, if it was read already; else transformers reads it again.

    Returns:
        None where the model has no file of one.

    Raises:
        OffsiteError: there is one and it cannot be read: it is damaged, or needs a package that is
            not installed.
    """
    if not has_processor(name, kind):
        return None
    label = label or name
    try:
        with quiet():
            return getattr(transformers, kind.processor_class).from_pretrained(
                str(name), config=config, trust_remote_code=False
            )
    except ImportError as error:
        raise OffsiteError(
            f"The {kind.processor_name} of '{label}' needs a package that is not installed: "
            f"{package(error)}; install it and try again."
        ) from error
    except BaseException as error:  # the tokenizers library raises bare exceptions, and panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = f"{type(error).__name__}: {reason(error)}"
        way = f"put its files there as they came with the original {kind.processor_name}"
        files = (Path(name) / file for file in kind.processor_files)
        if pointers := [file for file in files if file.is_file() and is_pointer(file)]:
            why, way = f"'{pointers[0]}' is a Git LFS pointer", "run 'git lfs pull'"
        raise OffsiteError(
            f"The {kind.processor_name} of '{label}' cannot be read ({why}); {way}."
        ) from error


def check_saved(processor: Any, folder: Path, kind: Kind) -> None:
    """Refuse a tokenizer that gives other token ids once it was saved and loaded.

    Raises:
        OffsiteError: it cannot read a text, or transformers loads another class than was saved.
    """
    if not hasattr(processor, "get_vocab"):
        return
    loaded = read_processor(folder, kind)
    try:
        same = loaded is not None and loaded(PROBE)["input_ids"] == processor(PROBE)["input_ids"]
    except Exception as error:  # the tokenizers library raises bare ones
        raise OffsiteError(
            f"The tokenizer {type(processor).__name__} cannot read a text ({reason(error)}); check "
            "'tokenizer_class' in its tokenizer_config.json, or use the model's original files."
        ) from error
    if not same:
        raise OffsiteError(
            f"The tokenizer {type(processor).__name__} does not give the same tokens once it was "
            "saved and loaded; convert it to a tokenizer.json that does, and make the offer again."
        )


def has_processor(name: str | Path, kind: Kind) -> bool:
    """Whether a model comes with a file of a tokenizer or image processor."""
    if Path(name).is_dir():
        return any((Path(name) / file).is_file() for file in kind.processor_files)
    for file in kind.processor_files:
        try:
            if cached_file(str(name), file, _raise_exceptions_for_missing_entries=False):
                return True
        except OSError:
            return False
    return False


def package(error: ImportError) -> str:
    """The package that an import error asks for, as pip calls it."""
    found = next((pip for name, pip in PACKAGES.items() if name in str(error)), None)
    return found or shown(" ".join(str(error).split()))
