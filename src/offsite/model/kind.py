"""The two kinds of model, for text and for images, and all decisions that depend on the kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers

from offsite.errors import OffsiteError
from offsite.files import shown


@dataclass(frozen=True)
class Kind:
    """What transformers calls the parts of a model of one kind.

    Attributes:
        name: ``"text"`` or ``"image"``.
        auto_class: the auto class that builds the model.
        mapping: the table of transformers from configuration class to model class.
        processor_class: the auto class that reads the tokenizer or image processor.
        processor_name: what messages call that.
        processor_files: a folder that holds one of these has such a processor; an offer must hold
            the first.
    """

    name: str
    auto_class: str
    mapping: str
    processor_class: str
    processor_name: str
    processor_files: tuple[str, ...]

    def model_class(self, config: Any) -> Any:
        """The transformers class that a configuration builds, or None if there is none."""
        found: Any = getattr(transformers, self.mapping).get(type(config), None)
        if not isinstance(found, (tuple, list)):
            return found
        names = getattr(config, "architectures", None) or ()
        return next((entry for entry in found if entry.__name__ in names), found[0])


TEXT = Kind(
    name="text",
    auto_class="AutoModelForCausalLM",
    mapping="MODEL_FOR_CAUSAL_LM_MAPPING",
    processor_class="AutoTokenizer",
    processor_name="tokenizer",
    processor_files=(
        "tokenizer_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tekken.json",
    ),
)
IMAGE = Kind(
    name="image",
    auto_class="AutoModelForImageClassification",
    mapping="MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    processor_class="AutoImageProcessor",
    processor_name="image processor",
    processor_files=("preprocessor_config.json", "processor_config.json"),
)


def text_config(config: Any) -> Any:
    """The part of a configuration that describes text; the whole where it has no such part.

    Raises:
        OffsiteError: a model of several texts, such as one for music, has more than one.
    """
    if not hasattr(config, "get_text_config"):
        return config
    try:
        return config.get_text_config()
    except ValueError:
        raise OffsiteError(
            f"A model of type '{shown(config.model_type)}' has several parts that read text, and "
            "offsite needs one; use a decoder-only language model."
        ) from None


def kind_of_task(task: str) -> Kind:
    """The kind of model that a task of this name needs."""
    return IMAGE if task.startswith("image") else TEXT


def kind_of_class(auto_class: str) -> Kind:
    """The kind whose models this auto class builds."""
    return IMAGE if auto_class == IMAGE.auto_class else TEXT


def kind_of_config(config: Any) -> Kind:
    """The kind of model a configuration describes, also when it is a bare vision tower."""
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return TEXT
    keys = ("vision_config", "image_size")
    return IMAGE if any(getattr(config, key, None) is not None for key in keys) else TEXT
