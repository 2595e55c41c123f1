"""A full disk or Ctrl-C in the middle of writing leaves nothing behind and touches nothing else."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import transformers

from offsite.compress.drop import Drop
from offsite.errors import OffsiteError
from offsite.exchange import delta as delta_module
from offsite.exchange import writing
from offsite.exchange.offer import Offer
from offsite.exchange.writing import check_written
from offsite.files import new_folder, write_file
from offsite.owner.offering import make_offer
from tests.support.golden import lora_delta
from tests.support.models import language_model


def an_offer() -> tuple[Offer, Any]:
    return make_offer(language_model("llama"), recipe=[Drop(keep=1)])


def savers() -> dict[str, Callable[[Path], None]]:
    offer, record = an_offer()
    return {"offer": offer.save, "delta": lora_delta(offer).save, "record": record.save}


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file may grow beyond ``limit`` bytes: the kernel then fails writes as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("what", ["offer", "delta", "record"])
@pytest.mark.parametrize("limit", [0, 700, 9000])
def test_a_full_disk_is_one_sentence(what: str, limit: int, tmp_path: Path) -> None:
    save = savers()[what]
    if what == "record" and limit == 9000:
        limit = 1500
    target = tmp_path / "out"
    with (
        small_files(limit),
        pytest.raises(OffsiteError, match="the disk is full; nothing was left"),
    ):
        save(target)
    assert not list(tmp_path.iterdir())
    save(target)
    assert target.exists()


@pytest.mark.parametrize("what", ["offer", "delta"])
@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), SystemExit(1)],
    ids=["disk full", "Ctrl-C", "exit"],
)
def test_an_interruption_at_the_last_moment_leaves_nothing(
    what: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = savers()[what]
    module = {"offer": writing, "delta": delta_module}[what]

    def fail(folder: Path, *args: Any) -> None:
        assert list(folder.glob("*.safetensors")), "tensors are on disk at this moment"
        raise failure

    monkeypatch.setattr(module, "write_manifest", fail)
    kind = OffsiteError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(kind):
        save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_never_touched(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("1")
    for name, save in savers().items():
        if name != "record":
            with pytest.raises(OffsiteError, match="exists already"):
                save(target)
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OffsiteError, match="exists already"):
        an_offer()[0].save(dangling)
    assert (target / "mine").read_text() == "1"


def test_overwriting_keeps_the_old_until_the_new_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "state"
    with new_folder(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), new_folder(target, overwrite=True) as folder:
        (folder / "a").write_text("half")
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "old"
    with new_folder(target, overwrite=True) as folder:
        (folder / "a").write_text("new")
    assert (target / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OffsiteError, match="Cannot write"):
        an_offer()[0].save(tmp_path / "file" / "offer")
    with pytest.raises(OffsiteError, match="Cannot write"):
        write_file(tmp_path / "file" / "record.json", "{}")


def test_a_configuration_that_is_written_in_part_is_refused(tmp_path: Path) -> None:
    """Transformers writes of Fuyu's language model what differs from another default."""
    config = transformers.FuyuConfig(text_config={"model_type": "persimmon", "hidden_size": 64})
    said = {"model_type": "fuyu", "text_config": {"model_type": "persimmon"}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(OffsiteError, match=r"leaves 'hidden_size' out of the text_config .*'fuyu'"):
        check_written(tmp_path, config)
    said["text_config"]["hidden_size"] = 64  # type: ignore[index]
    (tmp_path / "config.json").write_text(json.dumps(said))
    check_written(tmp_path, config)
