"""The configuration and tokenizer files of an offer hold keys of an allow list alone.

A checkpoint's files often hold more than a reader needs: notes, names of corpora, run ids, the
depth of a model before it was cut. So a key stays only if the family's own configuration class has
it, or if it is one that transformers writes for every tokenizer. Leaving the others out changes
nothing that is computed; :func:`offsite.model.processor.check_saved` and every reader check that.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from offsite.files import read_json

CONFIG = (
    "architectures",
    "model_type",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "layer_types",
)
FREE_TEXT = ("task_specific_params", "finetuning_task", "prefix", "name_or_path", "problem_type")
LABELS = ("id2label", "label2id", "num_labels")
WORD = re.compile(r"[A-Za-z0-9_.+\-]{0,40}")
TOKENIZER = frozenset(
    {
        "add_bos_token",
        "add_eos_token",
        "add_prefix_space",
        "added_tokens_decoder",
        "additional_special_tokens",
        "backend",
        "bos_token",
        "chat_template",
        "clean_up_tokenization_spaces",
        "cls_token",
        "do_lower_case",
        "eos_token",
        "errors",
        "extra_special_tokens",
        "legacy",
        "mask_token",
        "max_length",
        "model_input_names",
        "model_max_length",
        "model_specific_special_tokens",
        "pad_to_multiple_of",
        "pad_token",
        "pad_token_type_id",
        "padding_side",
        "processor_class",
        "sep_token",
        "sp_model_kwargs",
        "spaces_between_special_tokens",
        "split_special_tokens",
        "stride",
        "strip_accents",
        "tokenize_chinese_chars",
        "tokenizer_class",
        "trim_offsets",
        "truncation_side",
        "truncation_strategy",
        "unk_token",
    }
)


def keep_allowed(folder: Path, model: Any, processor: Any) -> None:
    """Rewrite the JSON files that transformers saved so that they hold allowed keys alone."""
    rewrite(folder / "config.json", lambda content: allowed_config(content, type(model.config)))
    rewrite(folder / "generation_config.json", lambda content: allowed_generation(content))
    own = parameters_of(type(processor)) if processor is not None else set()
    rewrite(folder / "tokenizer_config.json", lambda content: pick(content, {*TOKENIZER, *own}))
    if defaults := image_defaults(processor):
        rewrite(folder / "preprocessor_config.json", lambda content: pick(content, defaults))
    template = folder / "chat_template.jinja"
    if template.is_file():
        template.write_text(without_comments(template.read_text("utf-8")), encoding="utf-8")


def rewrite(path: Path, change: Any) -> None:
    """Put a changed JSON object in the place of the one in a file, if there is one."""
    if path.is_file():
        text = json.dumps(change(read_json(path)), indent=2, sort_keys=True, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def pick(content: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """The entries of a mapping whose keys are among some."""
    return {key: value for key, value in content.items() if key in keys}


def parameters_of(kind: type) -> set[str]:
    """Names of the parameters that classes of a family take, those above it included."""
    found: set[str] = set()
    for above in kind.__mro__[:-1]:
        found |= set(inspect.signature(above.__init__).parameters)  # type: ignore[misc]
    return found - {"self", "args", "kwargs"}


def image_defaults(processor: Any) -> set[str]:
    """Keys that the file of an image processor of this class may have; none for a tokenizer."""
    if processor is None or hasattr(processor, "get_vocab"):
        return set()
    standard = {"image_processor_type", "feature_extractor_type", "processor_class"}
    try:
        return standard | set(type(processor)().to_dict())
    except Exception:  # a class that needs arguments: its file stays as it is
        return standard | set(processor.to_dict())


def allowed_config(content: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """A model's configuration with the keys of its class, in its parts too.

    ``max_window_layers`` is cut to the number of blocks there are, as it can tell of more.
    """
    keys = {*CONFIG, *LABELS, *getattr(kind, "attribute_map", {}), *known_keys(kind)}
    parts = getattr(kind, "sub_configs", {})
    found: dict[str, Any] = {}
    for key, value in content.items():
        if key not in keys or key in FREE_TEXT:
            continue
        if key in parts and isinstance(value, Mapping):
            part = parts[key]
            found[key] = value if isinstance(part, str) else allowed_config(value, part)
        elif isinstance(value, Mapping) and key not in LABELS:
            found[key] = {name: inner for name, inner in value.items() if plain(inner)}
        else:
            found[key] = value
    depth = found.get("num_hidden_layers")
    if isinstance(depth, int) and isinstance(found.get("max_window_layers"), int):
        found["max_window_layers"] = min(found["max_window_layers"], depth)
    return found


def known_keys(kind: Any) -> set[str]:
    """The keys of a configuration class: its parameters and what a fresh one holds."""
    names = parameters_of(kind) | set(getattr(kind, "__dataclass_fields__", {}))
    try:
        return names | set(kind().to_dict())
    except Exception:  # a class whose defaults do not fit each other
        return names


def plain(value: Any) -> bool:
    """Whether a value below a key is a number, a word, or a list of such."""
    if isinstance(value, (list, tuple)):
        return all(plain(part) for part in value)
    if isinstance(value, Mapping):
        return all(WORD.fullmatch(str(k)) and plain(v) for k, v in value.items())
    return (
        value is None or isinstance(value, (bool, int, float)) or bool(WORD.fullmatch(str(value)))
    )


def allowed_generation(content: Mapping[str, Any]) -> dict[str, Any]:
    """How a model generates: the keys of transformers' own class."""
    return pick(content, {*GenerationConfig().to_dict(), "transformers_version"})


def without_comments(template: str) -> str:
    """A chat template without the text of its comments, if it then parses to the same tree."""
    from jinja2 import Environment, TemplateError

    bare = re.sub(r"\{#([-+]?).*?([-+]?)#\}", r"{#\1\2#}", template, flags=re.DOTALL)
    try:
        grammar = Environment(extensions=["jinja2.ext.loopcontrols"])
        same = grammar.parse(bare) == grammar.parse(template)
    except TemplateError:
        return template
    return bare if same else template
