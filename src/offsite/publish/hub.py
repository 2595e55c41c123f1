"""Push and pull offers and deltas through a model hub.

What is pushed is checked against its manifest first; what is pulled is checked before it gets its
name. Only files that the manifest names are fetched.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from offsite.errors import OffsiteError
from offsite.exchange.file_set import MANIFEST
from offsite.exchange.manifest import DeltaManifest, OfferManifest, read_either
from offsite.files import FILE_NAME, check_free, folder_files, new_folder, read_json
from offsite.signing.oms import SIGNATURE

CLIENTS = ("httpx", "httpx2", "requests")  # which one the hub's client uses depends on its release


def push(
    folder: str | Path,
    repo: str,
    *,
    public: bool = False,
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Upload an offer or a delta to a model repository, which is made where it does not exist.

    Args:
        folder: an offer or a delta; checked against its manifest.
        repo: ``organisation/name``.
        public: whether a new repository can be read by everybody; an existing one stays as it is.
        revision: branch; None for the main one.
        endpoint: address of another hub.
        token: None for the one the hub's own client is logged in with.

    Returns:
        The address of the commit.

    Raises:
        OffsiteError: a folder that was changed, or a hub that refuses or cannot be reached.
    """
    manifest = read_either(folder)
    api = HfApi(endpoint=endpoint, token=token)
    with _hub(repo):
        api.create_repo(repo, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=Path(folder),
            revision=revision,
            commit_message=f"{manifest.kind} {manifest.id[:8]}",
            allow_patterns=sorted(folder_files(folder)),
            delete_patterns="*",  # what an earlier push left there is not in this manifest
        )
    return str(commit.commit_url)


def pull(
    repo: str,
    folder: str | Path,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> OfferManifest | DeltaManifest:
    """Download an offer or a delta; the folder appears complete and checked, or not at all.

    Args:
        repo: ``organisation/name``.
        folder: where to put it; must not exist.
        revision: branch, tag or commit; all files are taken from one commit.
        endpoint, token: see :func:`push`.

    Returns:
        Its manifest.

    Raises:
        OffsiteError: no such repository, no offer or delta, or files that do not fit its manifest.
    """
    check_free(folder)
    api = HfApi(endpoint=endpoint, token=token)
    with tempfile.TemporaryDirectory() as scratch, new_folder(folder) as partial:
        with _hub(repo):
            info = api.model_info(repo, revision=revision)
            present = {sibling.rfilename for sibling in info.siblings or ()}

            def fetch(name: str) -> Path:
                path = api.hf_hub_download(repo, name, revision=info.sha, local_dir=scratch)
                return Path(shutil.copyfile(path, partial / name))

            if MANIFEST not in present:
                raise OffsiteError(
                    f"'{repo}' has no {MANIFEST}; it holds neither an offer nor a delta, so pull "
                    "from another repository."
                )
            for name in [*listed(fetch(MANIFEST)), *sorted(present & {SIGNATURE})]:
                if not FILE_NAME.fullmatch(name) or name not in present:
                    raise OffsiteError(
                        f"The manifest of '{repo}' names a file '{name[:80]}' that is not there; "
                        "ask its owner to push it again."
                    )
                fetch(name)
        return read_either(partial)


def listed(manifest: Path) -> list[str]:
    """The files that an unchecked manifest names."""
    data: Any = read_json(manifest)
    files = data.get("files") if isinstance(data, dict) else None
    if not isinstance(files, dict):
        raise OffsiteError(
            f"The {MANIFEST} there belongs to neither an offer nor a delta; pull from another "
            "repository."
        )
    return [str(name) for name in files if name != MANIFEST]


@contextmanager
def _hub(repo: str) -> Iterator[None]:
    """What the hub says, as one sentence."""
    try:
        yield
    except (HFValidationError, ValueError) as error:
        if isinstance(error, OffsiteError):
            raise
        raise OffsiteError(
            f"'{repo[:80]}' is not a hub name; write it as organisation/name."
        ) from error
    except OfflineModeIsEnabled as error:
        raise OffsiteError(
            "The hub is switched off here (HF_HUB_OFFLINE); unset that first."
        ) from error
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else "no answer"
        raise OffsiteError(
            f"The hub refused '{repo}' ({code}); check the name, and log in with: hf auth login."
        ) from error
    except Exception as error:
        known = isinstance(error, (LocalEntryNotFoundError, OSError))
        if not known and type(error).__module__.partition(".")[0] not in CLIENTS:
            raise
        raise OffsiteError(
            f"The hub could not be reached for '{repo}'; try again later."
        ) from error
