"""Check the names and contents of the files of an offer before any loader reads them.

transformers follows many keys of its JSON files: to code, to other folders, to the hub, or to
models of any size. An offer has no use for these; its author removes them and its reader refuses
them, by the same rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from offsite.errors import OffsiteError
from offsite.exchange.hostile import vet_side_file
from offsite.exchange.manifest import OfferManifest
from offsite.exchange.side import side_file
from offsite.files import read_json, shown
from offsite.model.blocks import block_parameters, block_path, get_blocks
from offsite.model.heads import head_entries
from offsite.model.tensors import TORCH, TensorEntry

SPECIAL, PLAIN, INDEX = "offer.safetensors", "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
TABLES = ("tokenizer.json", "vocab.json")  # large, and read by the tokenizers library alone
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
)
NAMES = ("id2label", "label2id", "added_tokens_decoder")  # any text may be below these
SUFFIXES = (".txt", ".model", ".jinja", ".md")
CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code", "quantization_config")
PATH_KEYS = ("name_or_path", "_name_or_path", "init_inputs", "cache_dir")
CLASSES = {
    "tokenizer_class": re.compile(r"\w*(Tokenizer|TokenizerFast|TokenizersBackend)"),
    "image_processor_type": re.compile(r"\w*ImageProcessor(Fast|Pil)?"),
    "feature_extractor_type": re.compile(r"\w*FeatureExtractor"),
    "processor_class": re.compile(r"\w*Processor"),
}
FLOATS = ("float32", "bfloat16", "float16", "float64")
# parts of configuration keys that count modules or entries made in a loop, with the most allowed
LIMITS = {"layer": 2048, "depth": 2048, "expert": 4096, "block": 65536, "label": 65536}
SIDE_BUFFERS = 2**26  # bytes of hidden buffers beyond as many as the offer's tensors have
TOO_LARGE = "is larger than any real model's"


def vet_files(folder: Path, manifest: OfferManifest) -> list[str]:
    """The weight files of an offer, after refusing every file that it has no use for.

    Raises:
        OffsiteError: an unknown kind of file, or weights that plain transformers would not read
            in full.
    """
    sides = [side_file(name) for name in manifest.side]
    if missing := [name for name in sides if name not in manifest.files]:
        raise OffsiteError(
            f"'{folder}' lacks the '{missing[0]}' that its manifest declares; ask for a fresh copy."
        )
    every = sorted(name for name in manifest.files if name.endswith(".safetensors"))
    weights = [name for name in every if name not in sides]
    for name in manifest.files:
        if name.endswith(SUFFIXES) or name in (*every, INDEX, *TABLES, *JSON_FILES):
            continue
        raise OffsiteError(
            f"'{folder}' holds '{name}'; an offer may hold only safetensors, the JSON files of a "
            f"model and its tokenizer, and {', '.join(SUFFIXES)}, so ask for a copy without it."
        )
    special = bool(manifest.layers or manifest.shared)
    sharded = INDEX in manifest.files and all(SHARD.fullmatch(name) for name in weights)
    single = weights == [SPECIAL if special else PLAIN] and INDEX not in manifest.files
    if not single and (special or not sharded or not weights):
        raise OffsiteError(
            f"The weights of '{folder}' are in files a loader would not all read; they belong in "
            f"{SPECIAL if special else f'{PLAIN}, or in shards with an index'}; ask for a fresh "
            "copy."
        )
    return weights


def vet_contents(folder: Path, manifest: OfferManifest, weights: list[str]) -> None:
    """Refuse JSON that leads a loader to code, to another folder, or to a model of absurd size.

    Raises:
        OffsiteError: naming the file and the key, never a value.
    """
    if "config.json" not in manifest.files:
        raise OffsiteError(
            f"The offer '{folder}' has no config.json, so it holds no model; ask for a fresh copy."
        )
    for name in manifest.files:
        vet_side_file(folder / name)
        if name not in (INDEX, *JSON_FILES):
            continue
        content = read_json(folder / name)
        if not isinstance(content, dict):
            raise OffsiteError(f"'{name}' of the offer is not a JSON object; ask for a fresh copy.")
        if name == INDEX:
            vet_index(content, manifest, weights)
            continue
        for key, reason in faults(content, name):
            raise OffsiteError(
                f"'{name}' of the offer has the key '{shown(key)}', which {reason}; ask for a "
                "repaired copy."
            )


def vet_index(content: Mapping[str, Any], manifest: OfferManifest, weights: list[str]) -> None:
    """Refuse an index of shards that does not list exactly the offer's tensors and files.

    Raises:
        OffsiteError: naming what it lists otherwise.
    """
    where = content.get("weight_map")
    if not isinstance(where, dict) or where.keys() != manifest.tensors.keys():
        raise OffsiteError(
            f"'{INDEX}' of the offer does not list the manifest's tensors; ask for a fresh copy."
        )
    if sorted({str(file) for file in where.values()}) != weights:
        raise OffsiteError(
            f"'{INDEX}' of the offer names files that the offer does not; ask for a fresh copy."
        )


def faults(content: Any, name: str, key: str = "") -> Iterator[tuple[str, str]]:
    """Every key below ``content`` that an offer may not have, with what is wrong about it."""
    if isinstance(content, Mapping):
        for inner, value in content.items():
            if reason := fault(inner, value, name):
                yield inner, reason
            elif inner not in NAMES:
                yield from faults(value, name, inner)
    elif isinstance(content, list):
        for value in content:
            if reason := None if isinstance(value, (dict, list)) else fault(key, value, name):
                yield key, reason
            yield from faults(value, name, key)


def fault(key: str, value: Any, name: str) -> str | None:
    """What is wrong with one key of one file, or None."""
    if value is None or isinstance(value, bool):
        return "could run code" if key in CODE_KEYS and value else None
    if key in CODE_KEYS:
        return "could run code or a loader that is not allowed"
    if (key in PATH_KEYS or key.endswith("_file")) and value not in ("", []):
        return "leads to other files"
    if key in CLASSES and not (isinstance(value, str) and CLASSES[key].fullmatch(value)):
        return "names a class that is not allowed"
    if key in ("dtype", "torch_dtype") and value not in FLOATS and not isinstance(value, dict):
        return "is not a floating-point dtype"
    if name == "config.json" and isinstance(value, str) and re.search(r"[/\\]", value):
        return "looks like a path or the name of a repository"
    if name in ("config.json", "preprocessor_config.json") and isinstance(value, int):
        parts = () if "size" in key or "dim" in key else LIMITS  # a width, not a count
        limits = [LIMITS[part] for part in parts if part in key.lower()]
        if abs(value) > min([2**31, *limits]):
            return TOO_LARGE
    return None


def scrub(folder: Path) -> None:
    """Remove from the JSON files that transformers wrote what :func:`vet_contents` would refuse.

    Local paths, the addresses of remote code and the like often stand in a checkpoint's files
    without being needed; they would tell the reader about the owner's machine.

    Raises:
        OffsiteError: a number that every reader would refuse.
    """
    for name in JSON_FILES:
        if not (folder / name).is_file():
            continue
        content = read_json(folder / name)
        found = list(faults(content, name))
        if large := [key for key, reason in found if reason == TOO_LARGE]:
            raise OffsiteError(
                f"The model's {name} has the key '{shown(large[0])}', which {TOO_LARGE}; no reader "
                "would take such an offer, so correct the file."
            )
        if found:
            text = json.dumps(_clean(content, name), indent=2, sort_keys=True, ensure_ascii=False)
            (folder / name).write_text(text + "\n", encoding="utf-8")


def _clean(content: Any, name: str) -> Any:
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if not fault(key, value, name)}
        return {k: v if k in NAMES else _clean(v, name) for k, v in kept.items()}
    return [_clean(value, name) for value in content] if isinstance(content, list) else content


def vet_depth(config: Any, manifest: OfferManifest) -> None:
    """Refuse more blocks than the offer has tensors for, before even an empty model is built.

    Raises:
        OffsiteError: naming the two counts.
    """
    depth = getattr(config, "num_hidden_layers", 0)
    if depth > len(manifest.tensors) + len(manifest.shared):
        raise OffsiteError(
            f"The offer's config.json describes {depth} blocks, more than its "
            f"{len(manifest.tensors)} tensors can fill; it is damaged, so ask for a fresh copy."
        )


def vet_family(skeleton: nn.Module, manifest: OfferManifest) -> None:
    """Refuse a configuration that asks for much more memory than the offer's tensors fill.

    ``skeleton`` is the family's model on the meta device; none of it has been allocated.

    Raises:
        OffsiteError: a tensor larger than all that the offer brings, or large hidden buffers.
    """
    brought = sum(entry.count for entry in manifest.tensors.values())
    allowed = SIDE_BUFFERS + sum(entry.bytes for entry in manifest.tensors.values())
    stored = set(skeleton.state_dict())
    hidden = sum(b.nbytes for name, b in skeleton.named_buffers() if name not in stored)
    if hidden > allowed or any(p.numel() > brought for p in skeleton.parameters()):
        raise OffsiteError(
            "The offer's config.json describes a larger model than its tensors fill; it is damaged "
            "or hostile, so ask for a fresh copy."
        )


def vet_tensors(skeleton: nn.Module, manifest: OfferManifest) -> None:
    """Compare a meta model, allow-listed layers in place, with the tensors an offer declares.

    Raises:
        OffsiteError: more values than declared; a declared tensor of another shape or kind of
            dtype; adapter blocks that do not exist; a contract for anything but them.
    """
    path, declared = block_path(skeleton), manifest.tensors
    total = len(get_blocks(skeleton))
    if path != manifest.block_path:
        raise OffsiteError(
            "The offer's block list is not where its manifest says; ask for a fresh copy."
        )
    if manifest.adapter[-1] >= total or manifest.shared.keys() & set(manifest.adapter):
        raise OffsiteError(
            f"The offer's adapter {shown(list(manifest.adapter))} is not among its {total} blocks; "
            "ask for a fresh copy."
        )
    for index, first in manifest.shared.items():
        if not 0 <= first < index < total or first in manifest.shared:
            raise OffsiteError(
                f"The offer shares block {index} with block {first}, which is impossible; "
                "ask for a fresh copy."
            )
    state = skeleton.state_dict(keep_vars=True)
    away = tuple(f"{path}.{index}." for index in manifest.shared) or ("\0",)
    needed = {id(t): t.numel() for name, t in state.items() if not name.startswith(away)}
    if sum(needed.values()) > sum(entry.count for entry in declared.values()):
        raise OffsiteError(
            "The offer's config.json describes more parameters than its tensors hold; it is "
            "damaged, so ask for a fresh copy."
        )
    for name in sorted(declared.keys() & state.keys()):
        if not fits(declared[name], state[name]):
            raise OffsiteError(
                f"The offer's tensor '{name}' is not of the shape or kind its model needs; "
                "ask for a fresh copy."
            )
    contract, head = block_parameters(skeleton, manifest.adapter), head_entries(skeleton)
    given = manifest.contract.tensors
    if manifest.contract.head.keys() != head.keys() or any(
        manifest.contract.head[name].shape != entry.shape for name, entry in head.items()
    ):
        raise OffsiteError(
            "The offer's return contract does not name exactly its model's head; ask for a fresh "
            "copy."
        )
    if given.keys() != contract.keys() or not all(fits(given[n], contract[n]) for n in given):
        raise OffsiteError(
            "The offer's return contract does not name exactly the tensors of its adapter blocks; "
            "ask for a fresh copy."
        )


def fits(entry: TensorEntry, tensor: Any) -> bool:
    """Whether a declared tensor can fill one of a model: its shape, and float for float."""
    same = TORCH[entry.dtype].is_floating_point == tensor.is_floating_point()
    exact = tensor.is_floating_point() or entry == TensorEntry.of(tensor)
    return entry.shape == tuple(tensor.shape) and same and exact
