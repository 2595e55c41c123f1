"""The owner's audit: attackers that must succeed do, and the control says what the text gives."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from offsite.audit import rebuilt
from offsite.audit.offer import SHIPPED, audit_margin, audit_offer
from offsite.audit.recovered import CONTROL, Attack, OfferAudit, Scale, check_recovered
from offsite.audit.training import Effort, random_weights
from offsite.cli.audit import offer_lines
from offsite.compress.drop import Drop
from offsite.compress.quantise import Quantise
from offsite.errors import OffsiteError
from offsite.exchange.offer import Offer
from offsite.exchange.record import Record
from offsite.model.blocks import get_blocks
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.tasks.text.causal import CausalText
from offsite.training.options import TrainOptions
from tests.support import Run
from tests.support.models import TEXT, inputs_for, language_model, output_of

CPU = torch.device("cpu")
TASK = CausalText(16)
QUICK = Effort((16 * 8 * 2, 16 * 8 * 4), (1e-3, 3e-3), TrainOptions(batch_size=8))

ONCE = Effort((128,), (1e-3,), TrainOptions(batch_size=8))


@pytest.fixture(scope="module")
def trained(tokenizer: Any) -> Any:
    """A tiny model that has learnt its text, so that there is something to recover."""
    from offsite.training.train import train

    model = language_model("llama")
    ids = torch.tensor(tokenizer(TEXT)["input_ids"])
    windows = ids[: len(ids) // 16 * 16].view(-1, 16)
    rows = [{"input_ids": window, "labels": window} for window in windows]
    model.requires_grad_(True)
    train(
        model, cast(Any, rows), loss=TASK.loss, collate=TASK.collate, device=CPU,
        options=TrainOptions(steps=60, lr=1e-2),
    )  # fmt: skip
    return model.requires_grad_(False).eval(), tokenizer, rows


def saved(model: Any, path: Path, recipe: Any, **options: Any) -> tuple[Offer, Record]:
    offer, record = make_offer(model, adapter=ends(1, 1), recipe=recipe, device="cpu", **options)
    record.save(path)
    return offer, Record.load(path)


def test_an_int8_copy_is_found_out_although_nothing_of_it_is_verbatim(
    trained: Any, tmp_path: Path
) -> None:
    model, _, rows = trained
    whole, _ = saved(model, tmp_path / "record.json", [Quantise(bits=8, group=16)])
    dropped, record = saved(model, tmp_path / "record.json", [Drop(keep=1)])
    audit = audit_offer(
        model, dropped, record, rows, TASK, device=CPU, effort=ONCE, earlier=[whole]
    )
    by_name = {attack.name: attack for attack in audit.attacks if not attack.tokens}
    assert by_name[SHIPPED].recovered == 0
    assert by_name["2 offers combined"].recovered > 0.95
    assert audit.best.recovered >= by_name["2 offers combined"].recovered


def test_training_recovers_and_the_control_is_no_attacker(trained: Any, tmp_path: Path) -> None:
    model, _, rows = trained
    offer, record = saved(model, tmp_path / "record.json", [Drop(keep=1)])
    audit = audit_offer(model, offer, record, rows, TASK, device=CPU, effort=QUICK)
    named = {(attack.name, attack.tokens): attack for attack in audit.attacks}
    most = QUICK.tokens[-1]
    assert named["all tuned", most].recovered > named["all tuned", QUICK.tokens[0]].recovered > 0
    assert named["all tuned", most].rate in QUICK.rates
    assert audit.best.name != CONTROL and (CONTROL, most) in named and audit.learnt
    for attack in audit.attacks:
        share = (attack.value - audit.shipped) / (attack.full - audit.shipped)
        assert attack.recovered == pytest.approx(min(1, share))
        assert attack.full <= audit.full  # the full model may learn the text too


def test_an_offer_that_is_about_the_model_counts_as_recovered(trained: Any, tmp_path: Path) -> None:
    """The share of a tiny distance says nothing, so an int8 copy must count as the model."""
    model, _, rows = trained
    whole, record = saved(model, tmp_path / "record.json", [Quantise(bits=8, group=16)])
    audit = audit_offer(model, whole, record, rows, TASK, device=CPU, effort=ONCE)
    assert audit.best.recovered == 1
    with pytest.raises(OffsiteError, match=r"recovers 100.0% of the distance"):
        check_recovered(audit, 0.99)


def test_learning_a_new_text_is_not_recovering_the_model(trained: Any, tmp_path: Path) -> None:
    """The full model learns a text that it does not know as well, and is what counts then."""
    model, _, rows = trained
    other = [{key: ids.flip(0) for key, ids in row.items()} for row in rows]
    offer, record = saved(model, tmp_path / "record.json", [Drop(keep=1)])
    effort = Effort((16 * 8 * 8,), (3e-3,), TrainOptions(batch_size=8))
    audit = audit_offer(model, offer, record, other, TASK, device=CPU, effort=effort)
    best = audit.best
    share = (best.value - audit.shipped) / (audit.full - audit.shipped)
    assert best.value < audit.full  # the attacker beats the model as it is
    assert best.recovered <= 1 < 1.05 < share


def test_no_more_than_all_of_a_model_is_recovered_and_one_that_knows_nothing_is_said() -> None:
    scale = Scale(full=4.0, shipped=5.0, random=6.0, higher_is_better=False)
    assert [scale.recovered(value, 3.5) for value in (5.0, 3.5, 2.0)] == [0, 1, 1]
    attacks = tuple(Attack(name, 9, value, 3.5, 1.0) for name, value in
                    (("a", 3.4), ("b", 2.0), (CONTROL, 3.9)))  # fmt: skip
    audit = OfferAudit("loss", False, 4.0, 5.0, attacks)
    assert audit.best.name == "b" and not audit.learnt
    assert any("caution" in line for line in offer_lines(Path("offer"), audit, None))
    known = OfferAudit("loss", False, 3.0, 5.0, attacks)
    assert known.learnt
    assert not any("caution" in line for line in offer_lines(Path("offer"), known, None))


def test_a_public_base_closes_the_gaps_of_a_fine_tune(trained: Any, tmp_path: Path) -> None:
    base, _, rows = trained
    model = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.01 * torch.randn_like(parameter))
    offer, record = saved(model, tmp_path / "record.json", [Drop(keep=1)])
    audit = audit_offer(model, offer, record, rows, TASK, device=CPU, effort=ONCE, base=base)
    found = next(a for a in audit.attacks if a.name == "public base in the gaps")
    assert found.recovered > 0.9


def test_two_scales_of_the_same_noise_give_the_weights_back() -> None:
    """The break of keyed noise: 3A - 2B, here with the noise made by hand."""
    model = language_model("llama")
    entry = make_offer(model, adapter=ends(1, 1), device="cpu")[1].offers[0]
    entry = entry.model_copy(update={"verbatim_tensors": {}})
    blocks = dict(enumerate(copy.deepcopy(list(get_blocks(model)))))
    noise = {n: torch.randn_like(p) for n, p in blocks[2].named_parameters()}

    def noisy(scale: float) -> Any:
        found = {p: copy.deepcopy(block) for p, block in blocks.items()}
        for name, parameter in found[2].named_parameters():
            parameter.data += scale * noise[name]
        return found, entry

    best = min(
        sum(
            float((p - dict(blocks[2].named_parameters())[n]).detach().square().sum())
            for n, p in rebuilding[2].named_parameters()
        )
        for rebuilding in rebuilt.combined([noisy(0.4), noisy(0.6)])
    )
    assert best < 1e-8


def test_what_is_verbatim_in_one_offer_wins_over_a_mean() -> None:
    model = language_model("llama")
    _, plain = make_offer(model, adapter=ends(1, 1), device="cpu")
    offer, coarse = make_offer(
        model, adapter=ends(1, 1), recipe=[Quantise(bits=4, group=16)], device="cpu"
    )
    views = [
        (rebuilt.shipped(offer, coarse.offers[0]), coarse.offers[0]),
        (dict(enumerate(get_blocks(model))), plain.offers[0]),
    ]
    found = rebuilt.build(model, next(iter(rebuilt.combined(views))))
    batch = inputs_for(model)
    assert torch.equal(output_of(found, batch), output_of(model, batch))


def test_singular_values_lose_noise() -> None:
    torch.manual_seed(0)
    signal = torch.randn(60, 4) @ torch.randn(4, 80)
    noisy = signal + 0.5 * signal.square().mean().sqrt() * torch.randn(60, 80)
    errors = [float((m - signal).norm()) for m in (rebuilt.shrunk(noisy, 0.5), noisy)]
    assert errors[0] < 0.5 * errors[1]
    assert torch.equal(rebuilt.shrunk(torch.zeros(4, 4), 0.5), torch.zeros(4, 4))


def test_the_control_knows_no_matrix() -> None:
    model = language_model("llama")
    fresh = random_weights(model, seed=0)
    pairs = zip(fresh.parameters(), model.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs if a.dim() > 1)


def test_the_margin_compares_on_equal_terms(trained: Any, tmp_path: Path) -> None:
    model, tokenizer, rows = trained
    offer, record = saved(model, tmp_path / "record.json", [Drop(keep=1)], processor=tokenizer)
    margin = audit_margin(
        model, offer, record, rows[:40], rows[40:60], TASK, device=CPU, effort=QUICK
    )
    assert margin.margin == pytest.approx(margin.attacker - margin.plug_in)  # of a loss
    assert not Record.load(tmp_path / "record.json").offers[0].accepted  # measured, not plugged


def test_too_little_data_is_refused(trained: Any, tmp_path: Path) -> None:
    model, _, rows = trained
    offer, record = saved(model, tmp_path / "record.json", [Drop(keep=1)])
    with pytest.raises(OffsiteError, match="needs 20 rows or more, and the data gives 5"):
        audit_offer(model, offer, record, rows[:5], TASK, device=CPU)


def test_the_command_prints_what_is_recovered(
    run: Run, model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    model = model_folder("llama")
    words: tuple[object, ...] = ("offer", model, "--out", tmp_path / "offer", "--keep", 2)
    assert run(*words, "--device", "cpu")[0] == 0
    words = ("audit", "offer", tmp_path / "offer", "--model", model, "--data", text_file)
    words += ("--record", tmp_path / "offer.record.json", "--tokens", "256", "--rates", "1e-3")
    words += ("--max-length", 16, "--device", "cpu")
    words += ("--private-data", text_file, "--private-eval", text_file)
    status, out, err = run(*words, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["recovered"] == max(
        a["recovered"] for a in found["attacks"] if a["name"] != CONTROL
    )
    assert set(found["margin"]) == {"plug_in", "attacker", "margin"}


def test_an_offer_that_gives_too_much_away_is_not_written(
    run: Run, model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    words: tuple[object, ...] = ("offer", model_folder("llama"), "--out", tmp_path / "offer")
    words += ("--keep", 2, "--device", "cpu", "--max-length", 16, "--audit-tokens", "256")
    status, _, err = run(*words, "--max-recovered", 0.5)
    assert status == 2 and "--audit-data" in err
    words += ("--audit-data", text_file)
    status, _, err = run(*words, "--max-recovered", 0)
    assert status == 2 and "recovers" in err and "nothing was written" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-llama", "train.txt"]
    status, out, err = run(*words, "--max-recovered", 1000, "--json")
    assert status == 0, err
    assert json.loads(out)["recovered"] < 1000
    assert (tmp_path / "offer").is_dir() and (tmp_path / "offer.record.json").is_file()


def test_the_gate_counts_earlier_offers(run: Run, model_folder: Any, text_file: Path) -> None:
    folder = model_folder("llama")
    first, second = folder.with_name("first"), folder.with_name("second")
    words: tuple[object, ...] = ("offer", folder, "--keep", 2, "--device", "cpu")
    record = folder.with_name("both.json")
    assert run(*words, "--out", first, "--record", record)[0] == 0
    words += ("--recipe", "random", "--max-length", 16, "--out", second, "--record", record)
    status, _, err = run(*words, "--earlier", first)
    assert status == 2 and "--earlier have no effect without --max-recovered" in err
    words += ("--audit-tokens", "256", "--audit-data", text_file, "--max-recovered", 1000)
    status, _, err = run(*words, "--earlier", first)
    assert status == 0 and "2 offers combined, 0 tokens" in err, err
    assert [len(Record.load(record).offers), second.is_dir()] == [2, True]
