"""The ledger: one delta per offer and round, whoever plugs it and whatever is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import offsite as ot
from offsite.exchange import manifest
from offsite.exchange.ledger import Ledger
from offsite.exchange.manifest import DeltaManifest, read_manifest
from offsite.files import new_folder
from offsite.owner.writing import write_plugged
from offsite.tasks.text.causal import CausalText

OPTIONS = ot.TrainOptions(steps=2, batch_size=2, lr=1e-2)


@pytest.fixture
def world(
    tmp_path: Path, model_folder: Callable[..., Path], text_file: Path, monkeypatch: Any
) -> Path:
    """A folder with ``model``, ``offer``, ``offer.record.json`` and ``delta``."""
    model_folder().rename(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    offer, record = ot.make_offer("model/", adapter=ot.ends(2, 1), recipe=[ot.Drop(keep=1)])
    offer.save("offer/")
    record.save("offer.record.json")
    task = CausalText(max_length=32)
    delta = ot.tune(ot.Offer.load("offer/"), text_file, ot.LoRA(rank=2), options=OPTIONS, task=task)
    delta.save("delta/")
    return tmp_path


def plug() -> Any:
    return ot.plug("model/", ot.Delta.load("delta/"), ot.Record.load("offer.record.json"))


def accepted() -> list[str]:
    return [entry.delta for entry in ot.Record.load("offer.record.json").offers[0].accepted]


def test_the_lines_of_the_readme_take_a_delta_once(world: Path) -> None:
    plug()
    assert accepted() == [ot.Delta.load("delta/").manifest.id]
    with pytest.raises(ot.OffsiteError, match="plugged already"):
        plug()
    record = ot.Record.load("offer.record.json")
    ot.plug("model/", ot.Delta.load("delta/"), record, again=True)
    assert len(accepted()) == 1


def test_an_old_copy_of_the_record_is_refused(world: Path) -> None:
    record = Path("offer.record.json")
    old = record.read_bytes()
    plug()
    record.write_bytes(old)
    with pytest.raises(ot.OffsiteError, match=r"'offer.record.json' is an old copy: the delta"):
        plug()
    with pytest.raises(ot.OffsiteError, match="old copy"):
        ot.make_offer("model/", recipe=[ot.Drop(keep=1)])[0].save("more/", record)
    assert not Path("more").exists() and record.read_bytes() == old
    ot.Record.load(record)  # it can be looked at


def test_a_record_without_its_last_offer_is_refused(world: Path) -> None:
    record = Path("offer.record.json")
    old = record.read_bytes()
    ot.make_offer("model/", recipe=[ot.Drop(keep=2)])[0].save("more/", record)
    record.with_name("copy.json").write_bytes(old)
    with pytest.raises(ot.OffsiteError, match=r"the offer .* was entered in it later"):
        ot.plug("model/", ot.Delta.load("delta/"), ot.Record.load("copy.json"))
    plug()


def test_a_lost_record_is_not_a_dead_end(world: Path) -> None:
    record = Path("offer.record.json")
    old = record.read_bytes()
    ot.make_offer("model/", recipe=[ot.Drop(keep=2)])[0].save("more/", record)
    record.write_bytes(old)
    with pytest.raises(ot.OffsiteError, match=r"remove '(.*)' to go on") as refused:
        plug()
    Path(str(refused.value).split("remove '")[1].split("'")[0]).unlink()
    plug()
    assert len(accepted()) == 1


def test_a_refused_delta_is_not_entered(world: Path) -> None:
    delta = ot.Delta.load("delta/")
    delta.values()[next(iter(delta.values()))] *= 1e9
    with pytest.raises(ot.OffsiteError, match="norm"):
        ot.plug("model/", delta, ot.Record.load("offer.record.json"))
    assert accepted() == []


def test_no_offer_appears_without_its_record(world: Path) -> None:
    offer, _ = ot.make_offer("model/", recipe=[ot.Drop(keep=1)])
    Path("other.record.json").write_text("{}")
    with pytest.raises(ot.OffsiteError):
        offer.save("other/")
    assert not Path("other").exists()
    Path("other.record.json").unlink()
    offer.save("other/")
    assert ot.Record.load("other.record.json").find(offer.manifest.id)
    again, _ = ot.make_offer("model/", recipe=[ot.Drop(keep=1)])
    again.save("third/", "other.record.json")
    assert len(ot.Record.load("other.record.json").offers) == 2
    assert not Path("third.record.json").exists()


def test_an_expired_offer_takes_no_delta(world: Path) -> None:
    record = ot.Record.load("offer.record.json")
    old = record.replaced(record.offers[0], expires=datetime(2020, 1, 1, tzinfo=UTC))
    old.write("offer.record.json")
    with pytest.raises(ot.OffsiteError, match="expired at 2020-01-01"):
        plug()
    ot.plug("model/", ot.Delta.load("delta/"), ot.Record.load("offer.record.json"), late=True)
    assert len(accepted()) == 1


def test_a_clock_before_the_offer_was_made_takes_no_delta(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = ot.Record.load("offer.record.json")
    late = manifest.now() + timedelta(days=30)
    record.replaced(record.offers[0], expires=late).write("offer.record.json")
    with monkeypatch.context() as early:
        early.setattr(manifest, "now", lambda: late - timedelta(days=3000))
        with pytest.raises(ot.OffsiteError, match="set the clock, because the offer expires"):
            plug()
    assert accepted() == []
    plug()


def test_the_expiry_stands_in_the_record(world: Path) -> None:
    date = datetime(2099, 1, 1, tzinfo=UTC)
    _, record = ot.make_offer("model/", recipe=[ot.Drop(keep=1)], expires=date)
    assert record.offers[0].expires == date


def _race(out: str) -> int:
    try:
        write_plugged(out, "model/", ot.Delta.load("delta/"), ot.Record.load("offer.record.json"))
    except ot.OffsiteError as error:
        assert "plugged already" in str(error)
        return 0
    return 1


def test_two_processes_take_the_same_delta_once(world: Path) -> None:
    with get_context("fork").Pool(2) as pool:
        taken = pool.map(_race, ["first", "second"])
    assert sorted(taken) == [0, 1]
    assert sorted(p.name for p in world.iterdir() if p.name in ("first", "second")) == [
        ("first", "second")[taken.index(1)]
    ]
    assert len(accepted()) == 1 and not list(world.glob(".*"))


@pytest.mark.parametrize("after_rename", [False, True])
def test_a_kill_leaves_model_and_entry_or_neither(world: Path, after_rename: bool) -> None:
    manifest: DeltaManifest = read_manifest("delta", DeltaManifest)
    if (child := os.fork()) == 0:
        ledger = Ledger(ot.Record.load("offer.record.json"))
        with new_folder("tuned") as partial:
            (partial / "offsite.json").write_text(f'{{"delta": "{manifest.id}"}}')
            with ledger.accepting(manifest, Path("tuned")):
                if after_rename:
                    partial.rename("tuned")
                os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert ot.Record.load("offer.record.json").offers[0].pending is not None
    assert Path("tuned").exists() == after_rename
    out, record = "tuned2" if after_rename else "tuned", ot.Record.load("offer.record.json")
    if after_rename:
        with pytest.raises(ot.OffsiteError, match="plugged already"):
            write_plugged(out, "model/", ot.Delta.load("delta"), record)
    else:
        write_plugged(out, "model/", ot.Delta.load("delta"), record)
        assert accepted() == [manifest.id] and not list(world.glob(".*"))


def test_a_record_changed_by_hand_is_refused(world: Path) -> None:
    path = Path("offer.record.json")
    data = json.loads(path.read_text())
    assert data["offers"][0]["adapter"] == [0, 1, 5] and data["seal"]
    swapped = {**data["offers"][0], "adapter": [0, 2, 5]}
    path.write_text(json.dumps({**data, "offers": [swapped]}))
    with pytest.raises(ot.OffsiteError, match=r"entry of the offer .* was changed by hand"):
        plug()
    path.write_text(json.dumps({**data, "block_path": "model.norm"}))
    with pytest.raises(ot.OffsiteError, match=r"head in the record .* was changed by hand"):
        plug()
    path.write_text(json.dumps({key: value for key, value in data.items() if key != "seal"}))
    with pytest.raises(ot.OffsiteError, match=r"lost its seal"):
        plug()
    path.write_text(json.dumps(data))
    plug()


@pytest.mark.parametrize("offers", [[[]], ["\ud800"], None, {"offer": 1}])
def test_offers_that_are_not_entries_are_refused(world: Path, offers: object) -> None:
    path = Path("offer.record.json")
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "offers": offers}))
    with pytest.raises(ot.OffsiteError, match="changed by hand"):
        ot.Record.load(path)
    links = ["\ud800"] * len(data["seal"]["links"])
    path.write_text(json.dumps({**data, "seal": {**data["seal"], "links": links}}))
    with pytest.raises(ot.OffsiteError, match="changed by hand"):
        ot.Record.load(path)


def test_a_seal_needs_the_secret_of_its_maker(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFSITE_HOME", str(world / "elsewhere"))
    with pytest.raises(ot.OffsiteError, match=r"copy 'record\.key'"):
        plug()


def test_a_record_of_an_older_release_is_read_and_sealed(world: Path) -> None:
    path = Path("offer.record.json")
    data = json.loads(path.read_text())
    del data["seal"], data["offers"][0]["sent"], data["offers"][0]["expires"]
    path.write_text(json.dumps(data))
    plug()
    assert "seal" in json.loads(path.read_text())
