"""Signatures: who sent a folder, for whom, and that it is what they sent; both ways with OMS."""

from __future__ import annotations

import io
import json
import resource
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import offsite as ot
from offsite.exchange.authenticity import check_signature, sign_folder
from offsite.exchange.file_set import MANIFEST
from offsite.exchange.manifest import read_either
from offsite.exchange.seal import SECRET
from offsite.signing import age
from offsite.signing.keys import key_folder, make_key, pin
from offsite.signing.oms import SIGNATURE
from offsite.tasks.text.causal import CausalText
from tests.support import Run
from tests.support.limited import limited
from tests.support.models import language_model

As = Callable[[str], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A folder with ``model``, ``offer``, ``offer.record.json`` and an unsigned ``delta``."""
    base = tmp_path_factory.mktemp("made")
    model = language_model("llama")
    model.save_pretrained(base / "model")
    offer, _ = ot.make_offer(model, recipe=[ot.Drop(keep=1)], processor=tokenizer)
    offer.save(base / "offer")
    (base / "t.txt").write_text("the cat sat on the mat. " * 60)
    options = ot.TrainOptions(steps=1, batch_size=2)
    loaded, task = ot.Offer.load(base / "offer"), CausalText(max_length=32)
    ot.tune(loaded, base / "t.txt", ot.LoRA(rank=2), options=options, task=task).save(
        base / "delta"
    )
    return base


@pytest.fixture
def act(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> As:
    """Become a party with a key; ``owner`` and ``tuner`` have pinned each other."""
    sealed_with = key_folder() / SECRET
    for name in ("owner", "tuner", "stranger"):
        monkeypatch.setenv("OFFSITE_HOME", str(tmp_path / name))
        make_key()

    def become(name: str) -> None:
        monkeypatch.setenv("OFFSITE_HOME", str(tmp_path / name))

    shutil.copy(sealed_with, tmp_path / "owner" / SECRET)  # ``made`` is the owner's
    for name, other in (("owner", "tuner"), ("tuner", "owner"), ("stranger", "owner")):
        become(name)
        pin(other, tmp_path / other / "key.pub")
    for folder in ("offer", "delta"):
        shutil.copytree(made / folder, tmp_path / folder)
    shutil.copy(made / "offer.record.json", tmp_path / "record.json")
    monkeypatch.chdir(tmp_path)
    return become


def plug(made: Path) -> Any:
    return ot.plug(made / "model", ot.Delta.load("delta"), ot.Record.load("record.json"))


def test_signed_folders_are_read_and_their_signer_is_known(act: As, made: Path) -> None:
    act("owner")
    sign_folder("offer", "tuner")
    act("tuner")
    offer = ot.Offer.load("offer")
    signer = check_signature("offer", offer.manifest)
    assert signer is not None and signer.name == "owner"
    sign_folder("delta", "owner")
    act("owner")
    assert plug(made) is not None


def test_a_signature_is_required_once_a_peer_is_pinned(act: As) -> None:
    act("tuner")
    with pytest.raises(ot.OffsiteError, match="is not signed"):
        ot.Offer.load("offer")
    assert ot.Offer.load("offer", require_signature=False)
    with pytest.raises(ot.OffsiteError, match="is not signed"):
        ot.Delta.load("delta")


def test_a_stranger_cannot_answer_an_offer(act: As, made: Path) -> None:
    act("owner")
    sign_folder("offer", "tuner")
    act("stranger")
    sign_folder("delta", "owner")
    act("owner")
    with pytest.raises(ot.OffsiteError, match="not pinned here"):
        plug(made)
    act("tuner")
    sign_folder("delta", "owner")
    act("owner")
    assert plug(made) is not None


def test_only_the_peer_an_offer_was_signed_for_answers_it(act: As, made: Path) -> None:
    act("owner")
    pin("stranger", Path("stranger/key.pub"))
    sign_folder("offer", "tuner")
    act("stranger")
    sign_folder("delta", "owner")
    act("owner")
    with pytest.raises(ot.OffsiteError, match="signed for another peer"):
        plug(made)
    act("stranger")
    with pytest.raises(ot.OffsiteError, match="another recipient"):
        ot.Offer.load("offer")


@pytest.mark.parametrize("change", ["manifest", "file", "signature", "cut"])
def test_a_change_on_the_way_is_refused(act: As, change: str) -> None:
    act("owner")
    path = sign_folder("offer", "tuner")
    act("tuner")
    if change == "manifest":
        text = Path("offer", MANIFEST).read_text()
        Path("offer", MANIFEST).write_text(text.replace('"round": 1', '"round": 2'))
    if change == "file":
        Path("offer", "generation_config.json").write_text("{}")
    if change == "signature":
        bundle = json.loads(path.read_text())
        sig = bundle["dsseEnvelope"]["signatures"][0]
        sig["sig"] = sig["sig"][:20] + ("A" if sig["sig"][20] != "A" else "B") + sig["sig"][21:]
        path.write_text(json.dumps(bundle))
    if change == "cut":
        path.write_text(path.read_text()[:300])
    with pytest.raises(ot.OffsiteError):
        ot.Offer.load("offer")


def test_a_delta_of_a_changed_offer_is_refused(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made / "offer", tmp_path / "offer"))
    data = json.loads((folder / MANIFEST).read_text())
    data["task"] = "chat"
    (folder / MANIFEST).write_text(json.dumps(data))
    options, task = ot.TrainOptions(steps=1, batch_size=2), CausalText(max_length=32)
    delta = ot.tune(
        ot.Offer.load(folder), made / "t.txt", ot.LoRA(rank=2), options=options, task=task
    )
    record = ot.Record.load(shutil.copy(made / "offer.record.json", tmp_path / "r.json"))
    with pytest.raises(ot.OffsiteError, match="an offer that was changed on the way"):
        ot.plug(made / "model", delta, record)


def test_a_card_keeps_the_tie_between_offer_and_delta(made: Path, tmp_path: Path) -> None:
    from offsite.exchange.authenticity import digest
    from offsite.publish.card import add_card

    folder = Path(shutil.copytree(made / "offer", tmp_path / "offer"))
    before: Any = read_either(folder)
    add_card(folder, licence="apache-2.0")
    after: Any = read_either(folder)
    assert before != after and digest(before) == digest(after)


def test_model_signing_verifies_ours_and_we_verify_theirs(act: As) -> None:
    signing = pytest.importorskip("model_signing.signing")
    verifying = pytest.importorskip("model_signing.verifying")
    act("owner")
    path = sign_folder("offer", "tuner")
    verifying.Config().use_elliptic_key_verifier(public_key=Path("owner/key.pub")).verify(
        Path("offer"), path
    )
    theirs = signing.Config().use_elliptic_key_signer(private_key=Path("tuner/key.pem"))
    theirs.sign(Path("delta"), Path("delta", SIGNATURE))
    signer = check_signature("delta", read_either("delta"), require=True)
    assert signer is not None and signer.name == "tuner"


def test_the_commands(run: Run, made: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "offer", "offer")
    monkeypatch.setenv("OFFSITE_HOME", "owner")
    status, out, err = run("keygen", "--json")
    assert status == 0 and len(json.loads(out)["fingerprint"]) == 64, err
    assert Path("owner", "key.pem").stat().st_mode & 0o077 == 0
    assert run("keygen")[0] == 2, "a key is never replaced"
    assert run("sign", "offer")[0] == 0
    monkeypatch.setenv("OFFSITE_HOME", "tuner")
    status, _, err = run("verify", "offer")
    assert status == 2 and "not pinned here" in err
    for name in ("../alice", "", ".", "alice\n", "yourself"):
        status, _, err = run("peer", name, "owner/key.pub")
        assert status == 2 and "cannot name a peer" in err, name
    assert run("peer", "alice", "owner/key.pub")[0] == 0
    status, out, _ = run("verify", "offer", "--json")
    assert status == 0 and json.loads(out)["signer"] == "alice"


def archive_of(**headers: str) -> bytes:
    """A tar archive of one small file, with PAX headers that its sender chose."""
    entry, held = tarfile.TarInfo("a.txt"), io.BytesIO()
    entry.size, entry.pax_headers = 5, headers
    with tarfile.open(fileobj=held, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(entry, io.BytesIO(b"hello"))
    return held.getvalue()


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"GNU.sparse.size": str(2**36), "GNU.sparse.map": "0,5"}, "more than the files of a flat"),
        ({"GNU.sparse.size": "x", "GNU.sparse.map": "0,5"}, "does not hold a folder"),
        ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, "does not hold a folder"),
        ({}, "has no manifest.json"),
    ],
    ids=["64 GiB of holes", "a size that is a word", "a map that is cut off", "no offer"],
)
def test_a_hostile_archive_is_refused(
    headers: dict[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bytes that say 64 GiB were written out in full; the other two gave a traceback."""
    pyrage = pytest.importorskip("pyrage")
    monkeypatch.setenv("OFFSITE_HOME", str(tmp_path / "home"))
    to = pyrage.x25519.Recipient.from_str(age.make_identity().read_text().strip())
    (tmp_path / "x.age").write_bytes(pyrage.encrypt(archive_of(**headers), [to]))

    def unpacked() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        age.decrypt_folder(tmp_path / "x.age", tmp_path / "out", read_either)

    told = limited(unpacked)
    assert told.startswith("OffsiteError") and reason in told, told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "x.age"]


def test_encrypted_to_one_recipient(run: Run, made: Path, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("pyrage")
    monkeypatch.chdir(tmp_path)
    for name in ("tuner", "other"):
        monkeypatch.setenv("OFFSITE_HOME", name)
        age.make_identity()
    words = ("encrypt", made / "offer", "--to", "tuner/age.pub", "--out", "offer.age")
    assert run(*words)[0] == 0
    assert b"manifest" not in Path("offer.age").read_bytes()
    status, _, err = run("decrypt", "offer.age", "--out", "back")
    assert status == 2 and "another recipient" in err and not Path("back").exists()
    monkeypatch.setenv("OFFSITE_HOME", "tuner")
    assert run("decrypt", "offer.age", "--out", "back")[0] == 0
    assert read_either("back") == read_either(made / "offer")
