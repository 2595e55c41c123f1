"""Load the configuration of a model by name, or say why that failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from offsite.errors import OffsiteError
from offsite.files import read_json, reason, shown
from offsite.model.kind import kind_of_class, text_config
from offsite.model.weights import other_format


def load_config(name: str | Path, label: str | Path | None = None) -> Any:
    """The configuration of a local folder or a hub model; ``label`` is what messages call it.

    Raises:
        OffsiteError: neither a folder with a ``config.json`` nor a model the hub can deliver, or
            one that needs remote code.
    """
    path, label = Path(name), label or name
    check_folder(path, label)
    try:
        return transformers.AutoConfig.from_pretrained(str(name), trust_remote_code=False)
    except Exception as error:  # strict configurations raise types of their own
        if path.is_dir():
            why = refused(path, error)
        else:
            why = (
                "there is no local folder of this name, and no model of this name could be fetched "
                "from the hub"
            )
        raise OffsiteError(f"Cannot load the model '{label}': {why}.") from error


def check_folder(path: Path, label: str | Path) -> None:
    """Refuse a path that is a file, and a folder that is not a model of its own.

    Raises:
        OffsiteError: naming what it is instead.
    """
    if path.is_file():
        raise OffsiteError(
            other_format(path)
            or f"'{label}' is a file; a model is a folder with config.json and safetensors weights."
        )
    if not path.is_dir():
        return
    if not (path / "config.json").is_file():
        raise OffsiteError(
            other_format(path)
            or f"The folder '{label}' has no config.json, so it does not hold a model."
        )
    if (path / "adapter_config.json").is_file():
        raise OffsiteError(
            f"The folder '{label}' also holds adapter_config.json, for which transformers loads "
            "another model and puts this adapter on it; merge the adapter first, or take the file "
            "away if the weights are merged already."
        )


def refused(path: Path, error: Exception) -> str:
    """Why transformers refuses a ``config.json``."""
    content = read_json(path / "config.json")
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind is None:
        return "its config.json has no model_type, so transformers cannot know its architecture"
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return (
            f"its architecture '{shown(kind)}' is not one that transformers knows (remote code is "
            "never run)"
        )
    return f"its config.json is not valid for '{shown(kind)}' ({reason(error)})"


def load_generation(name: str | Path, label: str | Path | None = None) -> Any:
    """How a local folder or a hub model generates; None where it does not say.

    Raises:
        OffsiteError: a ``generation_config.json`` with values that do not fit each other.
    """
    try:
        return transformers.GenerationConfig.from_pretrained(str(name))
    except OSError:  # there is none
        return None
    except Exception as error:  # its checks compare values without a look at their types
        raise OffsiteError(
            f"The generation_config.json of '{label or name}' is not valid; correct it, or ask for "
            "a fresh copy."
        ) from error


def wrong_pad(config: Any) -> OffsiteError | None:
    """Why no model can have this ``pad_token_id``; None where the vocabulary has such a token."""
    text = text_config(config)
    pad, size = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if pad is None or size is None or -size <= pad < size:
        return None
    return OffsiteError(
        f"The config.json says pad_token_id {pad}, but the vocabulary has {size} tokens, so no "
        f"token has this id; set it to null or to an id below {size}."
    )


def misfit(config: Any, auto_class: str, error: Exception) -> OffsiteError | None:
    """Why a configuration cannot be built; None where it is not one that the auto class knows."""
    if kind_of_class(auto_class).model_class(config) is None:
        return None
    if (pad := wrong_pad(config)) is not None:
        return pad
    return OffsiteError(
        f"A model of type '{config.model_type}' cannot be built from its config.json, whose values "
        f"do not fit each other ({type(error).__name__}: {reason(error)}); "
        "correct them."
    )
