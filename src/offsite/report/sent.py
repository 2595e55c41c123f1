"""What was sent: bytes, the share sent verbatim, positions, contents of folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from offsite.report import pictures
from offsite.report.html import folded, listing, table
from offsite.report.runs import Run, Setting, show_bytes

FEW = 6
CAUTION = (
    '<p class="soft">Verbatim: the share of all parameters that are sent bit for bit, with '
    "embeddings, head and adapter. Compressed weights are sent too, in another form, and are not "
    "counted: an int8 copy of a block counts as nothing. 'offsite audit offer' measures what can "
    "be recovered."
    "</p>"
)


def sent_section(runs: Sequence[Run]) -> str:
    """The whole section; nothing where nothing is known."""
    lines = []
    settings = [setting for run in runs for setting in run.settings]
    for s in settings:
        offer, model, delta = (s.mean(k) for k in ("bytes_offer", "bytes_model", "bytes_delta"))
        share = s.mean("verbatim")
        if offer is None and delta is None and share is None:
            continue
        part = f" <small>{offer / model:.0%}</small>" if offer is not None and model else ""
        lines.append((s, [
            escape(full_label(s, settings)), show_bytes(model), show_bytes(offer) + part,
            show_bytes(delta), "-" if share is None else f"{share:.1%}",
        ]))  # fmt: skip
    folders = "".join(contents(run.name, run.manifest) for run in runs if run.manifest)
    stand = strips(settings)
    if not lines and not folders and not stand:
        return ""
    head = ["setting", "model", "offer", "delta", "verbatim"]
    listed = f"{listing(head, lines)}{CAUTION}" if lines else ""
    return f"<h2>What was sent</h2>{listed}{stand}{folders}"


def full_label(setting: Setting, among: Sequence[Setting]) -> str:
    """A setting's label, with its task where there are several."""
    several = len({(s.model, s.task) for s in among}) > 1
    return f"{setting.task}: {setting.label}" if several and setting.task else setting.label


def strips(settings: Sequence[Setting]) -> str:
    """The positions of each emulator's blocks in the model, for the runs that record them."""
    drawn: dict[str, dict[str, None]] = {}
    for setting in settings:
        total, adapter, kept = (setting.rows[0].get(k) for k in ("total", "adapter", "positions"))
        if isinstance(total, int) and isinstance(adapter, list) and isinstance(kept, list):
            picture = pictures.blocks(total, adapter, kept)
            drawn.setdefault(picture, {})[setting.recipe or setting.label] = None
    if not drawn:
        return ""
    shown = [f"<h4>{escape(', '.join(names))}</h4>{strip}" for strip, names in drawn.items()]
    rest = folded(f"{len(shown) - FEW} more", "".join(shown[FEW:])) if shown[FEW:] else ""
    colours = (
        ("plug", "adapter"),
        ("emulator", "in the emulator, as it is or made lighter"),
        ("gone", "left out"),
    )
    key = "".join(f'<span style="--dot:var(--{c})">{words}</span>' for c, words in colours)
    return (
        '<figure class="card wide"><h3>Where the emulator\'s blocks come from</h3>'
        f'<div class="key soft">{key}</div>{"".join(shown[:FEW])}{rest}'
        "<figcaption>For the owner: the offer does not tell these positions.</figcaption>"
        "</figure>"
    )


def contents(name: str, manifest: Mapping[str, Any]) -> str:
    """The files and tensors of an offer or a delta."""
    kind = str(manifest.get("kind", "folder"))
    files: Mapping[str, Any] = manifest.get("files") or {}
    tensors: Mapping[str, Any] = manifest.get("tensors") or {}
    rows = [
        [escape(str(file)), show_bytes(entry.get("size")), escape(str(entry.get("sha256"))[:16])]
        for file, entry in files.items()
    ]
    kinds = Counter(str(entry.get("dtype")) for entry in tensors.values())
    said = ", ".join(f"{count} {dtype}" for dtype, count in kinds.most_common())
    shapes = [
        [
            escape(str(t)),
            escape(str(entry.get("dtype"))),
            escape(" x ".join(map(str, entry["shape"]))),
        ]
        for t, entry in tensors.items()
    ]
    method = manifest.get("method")
    tuned = f"<p>Method: <code>{escape(json.dumps(method))}</code></p>" if method else ""
    return (
        f"<h3>{escape(kind)}: {escape(name)}</h3>{tuned}"
        + table(["file", "size", "SHA-256 (start)"], rows, words=(2,))
        + folded(f"{len(tensors)} tensors ({said})", table(["tensor", "dtype", "shape"], shapes))
    )
