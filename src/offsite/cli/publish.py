"""Commands that publish: cards, and push and pull through a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offsite.cli import options as o
from offsite.cli.output import emit


def card(
    folder: Annotated[Path, typer.Argument(help="Offer or delta.")],
    licence: Annotated[str, typer.Option(help="Licence, as the hub names it, such as apache-2.0.")],
    base_model: Annotated[str | None, typer.Option(help="Hub name of the full model.")] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Scores to publish, as 'offsite score --json' wrote them.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="Public name of the data.")] = "unnamed data",
    notes: Annotated[str, typer.Option(help="Markdown text to add.")] = "",
    json: o.Json = False,
) -> None:
    """Put a model card (README.md) into an offer or a delta, and into its manifest."""
    from offsite.files import read_json
    from offsite.publish.card import add_card
    from offsite.scores.scores import Scores

    published = Scores.from_json(read_json(scores), str(scores)) if scores else None
    text = add_card(
        folder,
        licence=licence,
        base_model=base_model,
        dataset=dataset,
        scores=published,
        notes=notes,
    )
    emit({"folder": str(folder), "card": text}, json, [f"{folder}/README.md written"])


def push(
    folder: Annotated[Path, typer.Argument(help="Offer or delta.")],
    repo: Annotated[str, typer.Argument(help="organisation/name on the hub.")],
    public: Annotated[bool, typer.Option("--public", help="Make the repository public.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Address of another hub.")] = None,
    json: o.Json = False,
) -> None:
    """Upload an offer or a delta to a model hub."""
    from offsite.publish.hub import push as upload

    url = upload(folder, repo, public=public, revision=revision, endpoint=endpoint)
    emit({"repo": repo, "commit": url}, json, [f"{folder} pushed: {url}"])


def pull(
    repo: Annotated[str, typer.Argument(help="organisation/name on the hub.")],
    out: Annotated[Path, typer.Option(help="Folder; must not exist.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Address of another hub.")] = None,
    json: o.Json = False,
) -> None:
    """Download an offer or a delta from a model hub and check it."""
    from offsite.publish.hub import pull as download

    manifest = download(repo, out, revision=revision, endpoint=endpoint)
    emit(
        {"folder": str(out), "kind": manifest.kind, "id": manifest.id},
        json,
        [f"{out}: {manifest.kind} {manifest.id[:8]}, checked"],
    )
