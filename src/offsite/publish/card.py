"""Model cards: a README.md in the form of the hub.

A card says what its author chose to say: the licence, the base model and scores are given, never
guessed; neither the recipe nor any place of the private data can get in.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from offsite.deltas import method_text
from offsite.errors import OffsiteError
from offsite.exchange.file_set import README, hash_files
from offsite.exchange.manifest import (
    DeltaManifest,
    Manifest,
    OfferManifest,
    read_either,
    write_manifest,
)
from offsite.files import new_folder, write_file
from offsite.model.kind import IMAGE, kind_of_task
from offsite.scores.scores import DERIVED, TITLES, Scores
from offsite.signing.oms import SIGNATURE

LICENCE = re.compile(r"[a-z0-9][a-z0-9.\-]{0,60}")
REPO = re.compile(r"[\w.\-]{1,96}(/[\w.\-]{1,96})?")
USES = {
    "offer": """\
This is an *offer*: a few adapter blocks of a model around a compressed stand-in for its middle.
Tune the adapter on your own data, where your data is, and send back the change alone:

```sh
offsite tune {name} --data data.jsonl --out delta/
```
""",
    "delta": """\
This is a *delta*: the change to the adapter blocks of an offer, and nothing else. Only the owner
of the full model, with the record made with the offer, can place it:

```sh
offsite plug MODEL {name} --record offer.record.json --out adapted/
```
""",
}
LIMITS = """\
The scores are measurements on one data set. *Gap* is the plugged model against the tuned emulator,
*margin* is the plugged model against the emulator with every weight of the offer tuned. Neither is
a bound on what an emulator can be trained to do.
"""


def make_card(
    manifest: Manifest,
    *,
    licence: str,
    base_model: str | None = None,
    dataset: str = "unnamed data",
    scores: Scores | None = None,
    notes: str = "",
    name: str | None = None,
) -> str:
    """The text of a card.

    Args:
        manifest: of the offer or the delta.
        licence: its identifier on the hub, such as ``"apache-2.0"`` or ``"other"``.
        base_model: hub name of the model it comes from, where that may be said.
        dataset: what the data of the scores may be called in public.
        scores: those to publish; None for none.
        notes: further Markdown.
        name: what the folder is called in the example command.

    Raises:
        OffsiteError: a licence or a base model that the hub would not take.
    """
    if not LICENCE.fullmatch(licence):
        raise OffsiteError(
            f"'{licence[:60]}' is not a licence identifier of the hub; use one such as apache-2.0, "
            "cc-by-4.0 or other."
        )
    if base_model is not None and not REPO.fullmatch(base_model):
        raise OffsiteError(f"'{base_model[:60]}' is not a hub name; write it as organisation/name.")
    kind = "offer" if isinstance(manifest, OfferManifest) else "delta"
    images = kind_of_task(manifest.task) is IMAGE
    task = "image-classification" if images else "text-generation"
    data = ModelCardData(
        license=licence,
        base_model=base_model,
        library_name="peft" if getattr(manifest, "format", "") == "peft" else "offsite",
        pipeline_tag=task,
        tags=["offsite-tuning", kind],
        model_name=f"{manifest.model_name} {kind}" if scores else None,
        eval_results=_results(scores, task, dataset) if scores else None,
    )
    body = [
        f"# {_plain(manifest.model_name)}: {kind}",
        USES[kind].format(name=name or f"{kind}/"),
        _contents(manifest),
    ]
    if scores:
        body += [_table(scores, dataset), LIMITS]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join([*body, notes]).rstrip() + "\n"


def add_card(folder: str | Path, **options: Any) -> str:
    """Put a card into an offer or delta folder, and into its manifest; replaces one that is there.

    The folder is exchanged in one step. Sign it afterwards: a signature of the old files would no
    longer hold.

    Args:
        folder: an offer or a delta.
        options: of :func:`make_card`.

    Raises:
        OffsiteError: no such folder, one that was changed, or options the hub would not take.
    """
    folder = Path(folder)
    manifest = read_either(folder)
    if (folder / SIGNATURE).exists():
        raise OffsiteError(
            f"'{folder}' is signed; remove '{SIGNATURE}', add the card, and sign it again."
        )
    text = make_card(manifest, **{"name": folder.name, **options})
    with new_folder(folder, overwrite=True) as partial:
        for file in manifest.files:
            if file != README:
                _link(folder / file, partial / file)
        write_file(partial / README, text)
        write_manifest(partial, manifest.model_copy(update={"files": hash_files(partial)}))
    return text


def _link(source: Path, target: Path) -> None:
    """Another name for the same file where the file system can, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _results(scores: Scores, task: str, dataset: str) -> list[EvalResult]:
    known = scores.to_json()["scores"]
    return [
        EvalResult(
            task_type=task,
            dataset_type="other",
            dataset_name=dataset,
            metric_type=scores.metric,
            metric_name=TITLES[key],
            metric_value=round(value, 6),
        )
        for key, value in known.items()
    ]


def _contents(manifest: Manifest) -> str:
    count = sum(entry.bytes for entry in manifest.tensors.values())
    rows = [
        f"- from: {_plain(manifest.model_name)}",
        f"- task: {_plain(manifest.task)}",
        f"- weights: {len(manifest.tensors)} tensors, {count / 1e6:.3g} MB",
        f"- adapter blocks: {len(manifest.adapter)}",
        f"- exchange: `{manifest.id}`",
    ]
    if isinstance(manifest, DeltaManifest):
        rows.append(f"- answers the offer `{manifest.parent}`")
        rows.append(f"- method: {_plain(method_text(manifest.method))}")
    return "## What is inside\n\n" + "\n".join(rows) + "\n"


def _table(scores: Scores, dataset: str) -> str:
    found = scores.to_json()
    rows = [f"| {TITLES[key]} | {value:.4g} |" for key, value in found["scores"].items()]
    rows += [f"| {key} | {found[key]:.4g} |" for key in DERIVED if key in found]
    head = f"| {_plain(scores.metric)} on {_plain(dataset)} | |\n|---|---|"
    return "\n".join(["## Scores", "", head, *rows, ""])


def _plain(words: str) -> str:
    """Words that Markdown and HTML take as they are."""
    return re.sub(r"[^\w .,:/+=\-]", " ", words).strip()
