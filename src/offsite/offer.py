"""The offer: adapter, emulator, ends, tokenizer and manifest, as one folder.

When the emulator holds only the family's own blocks, the folder is an ordinary transformers
checkpoint. Otherwise its weights are named ``offer.safetensors``, so that a plain
``from_pretrained`` fails loudly instead of filling gaps with random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from offsite import layers
from offsite.blocks import block_path
from offsite.checkpoint import build_skeleton, load_config, load_model, quiet
from offsite.errors import OffsiteError
from offsite.files import new_folder, read_json
from offsite.manifest import OfferManifest, hash_files, read_manifest, write_manifest
from offsite.tensors import describe, load_tensors, save_tensors

WEIGHTS = "offer.safetensors"
ALLOWED_FILES = (".safetensors", ".json", ".txt", ".jinja", ".model", ".md")


@dataclass
class Offer:
    """What the model owner ships.

    Attributes:
        model: the emulator between its adapter blocks, a transformers model.
        manifest: what it is; ``manifest.files`` and ``manifest.tensors`` are filled by ``save``.
        processor: tokenizer or image processor, or None.
        folder: where it was loaded from or saved to.
    """

    model: Any
    manifest: OfferManifest
    processor: Any = None
    folder: Path | None = None

    def save(self, folder: str | Path) -> None:
        """Write the offer; the folder appears complete or not at all.

        Raises:
            OffsiteError: the folder exists.
        """
        with new_folder(folder) as partial:
            self.manifest = write_offer(self, partial)
        self.folder = Path(folder)

    @classmethod
    def load(cls, folder: str | Path, *, dtype: Any = None) -> Offer:
        """Verify and load an offer; nothing in the folder is executed.

        Args:
            folder: an offer folder.
            dtype: dtype to compute in; None for that of the weights.

        Raises:
            OffsiteError: not an offer, changed, expired, or with layers outside the allow-list.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, OfferManifest)
        check_contents(folder, manifest)
        auto_class = task_auto_class(manifest.task)
        weights = load_tensors(sorted(folder.glob("*.safetensors")), manifest.tensors)
        if (folder / WEIGHTS).exists():
            model = load_special(folder, manifest, auto_class, weights)
            model = model.to(dtype) if dtype else model
        else:
            model = load_model(folder, auto_class, dtype=dtype)
        if block_path(model) != manifest.block_path:
            raise OffsiteError(f"The block list of '{folder}' is not where its manifest says.")
        return cls(model, manifest, load_processor(folder, manifest.task), folder)


def task_auto_class(task: str) -> str:
    """The transformers auto class for a task name of the manifest."""
    return "AutoModelForImageClassification" if task.startswith("image") else "AutoModelForCausalLM"


def load_processor(folder: str | Path, task: str) -> Any:
    """The tokenizer (text) or image processor (images) in a folder or on the hub; None if absent."""
    build = "AutoImageProcessor" if task.startswith("image") else "AutoTokenizer"
    try:
        with quiet():
            return getattr(transformers, build).from_pretrained(
                str(folder), trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, ImportError):
        return None


def check_contents(folder: Path, manifest: OfferManifest) -> None:
    """Refuse file types and configuration keys that could make a loader run code."""
    for name in manifest.files:
        if not name.endswith(ALLOWED_FILES):
            raise OffsiteError(
                f"'{folder}' holds '{name}'; an offer may hold only {', '.join(ALLOWED_FILES)}."
            )
        if name.endswith(".json") and not name.endswith(".index.json"):
            content = read_json(folder / name)
            if isinstance(content, dict) and "auto_map" in content:
                raise OffsiteError(
                    f"'{name}' of '{folder}' asks for remote code (auto_map), which is never run."
                )


def write_offer(offer: Offer, folder: Path) -> OfferManifest:
    """Fill an empty folder and return the finished manifest."""
    model = offer.model
    family = build_skeleton(model.config, task_auto_class(offer.manifest.task))
    specs, shared = layers.find_specs(model, family), layers.find_shared(model)
    if specs or shared:
        tensors = unique_tensors(model, shared)
        save_tensors(tensors, folder / WEIGHTS)
        model.config.save_pretrained(folder)
    else:
        with quiet():
            model.save_pretrained(folder)
        tensors = load_tensors(sorted(folder.glob("*.safetensors")))
    if offer.processor is not None:
        offer.processor.save_pretrained(folder)
    manifest = offer.manifest.model_copy(
        update={
            "layers": specs,
            "shared": shared,
            "tensors": describe(tensors),
            "files": hash_files(folder),
        }
    )
    write_manifest(folder, manifest)
    return manifest


def unique_tensors(model: Any, shared: dict[int, int]) -> dict[str, Any]:
    """The state of a model with tied and shared tensors once, under their first name."""
    path, seen, tensors = block_path(model), set(), {}
    prefixes = tuple(f"{path}.{index}." for index in shared)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and not (prefixes and name.startswith(prefixes)):
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def load_special(
    folder: Path, manifest: OfferManifest, auto_class: str, weights: dict[str, Any]
) -> Any:
    """Build the family's model, put allow-listed layers in, and fill every tensor."""
    with quiet():
        model = getattr(transformers, auto_class).from_config(load_config(folder))
    layers.rebuild(model, manifest.layers)
    absent, extra = model.load_state_dict(weights, strict=False, assign=True)
    layers.share(model, manifest.shared)
    model.tie_weights()
    prefixes = tuple(f"{manifest.block_path}.{index}." for index in manifest.shared)
    present = {id(p) for n, p in model.state_dict(keep_vars=True).items() if n in weights}
    state = model.state_dict(keep_vars=True)
    absent = [
        n for n in absent if not n.startswith(prefixes or ("\0",)) and id(state[n]) not in present
    ]
    if absent or extra:
        raise OffsiteError(
            f"The tensors of '{folder}' do not fill its model; the first odd one is "
            f"'{[*absent, *extra][0]}'."
        )
    return model.eval()
