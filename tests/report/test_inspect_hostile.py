"""``offsite inspect`` on what strangers send: vetted before it is built, and shown as it is."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from offsite.compress.drop import Drop
from offsite.compress.quantise import Quantise
from offsite.compress.step import Step
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta, new_delta
from offsite.exchange.file_set import MANIFEST, hash_files
from offsite.exchange.offer import Offer, read_offer
from offsite.exchange.record import Record
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.report.inspection import inspect_path
from offsite.report.structure import Node, delta_tree, draw, held_tensors, ranges
from tests.support import Run
from tests.support.models import language_model

NORM = "model.layers.0.input_layernorm.weight"


def forge(folder: Path, name: str, **values: Any) -> None:
    """Set keys of one JSON file and make the manifest agree, as a malicious sender would."""
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | values))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {n: entry.model_dump() for n, entry in hash_files(folder).items()}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def picture(*parts: Any) -> str:
    """What a person sees."""
    console = Console(width=200, soft_wrap=True)
    with console.capture() as capture:
        for part in parts:
            console.print(part, highlight=False)
    return capture.get()


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``offer``, a ``delta`` that answers it, and another offer, ``quantised``."""
    folder = tmp_path_factory.mktemp("exchange")
    model = language_model("llama")
    offer, record = make_offer(model, adapter=ends(2, 1), recipe=[Drop(keep=2)], name="tiny")
    offer.save(folder / "offer")
    record.save(folder / "record.json")
    steps: list[Step] = [Drop(keep=2), Quantise(bits=4, group=16)]
    make_offer(model, adapter=ends(2, 1), recipe=steps)[0].save(folder / "quantised")
    tensors = {NORM: offer.model.get_parameter(NORM).detach().clone()}
    new_delta(offer.manifest, tensors, {"kind": "full", "part": "norm"}).save(folder / "delta")
    return folder


@pytest.fixture
def copy_of(exchange: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a fresh copy of one of the folders."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(exchange / name, tmp_path / name))

    return copy


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config.json", {"num_hidden_layers": 20_000}),
        ("config.json", {"num_hidden_layers": 2000}),
        ("config.json", {"hidden_size": 10**9}),
        ("config.json", {"auto_map": {"AutoConfig": "x.Y"}}),
        (MANIFEST, {"layers": {"lm_head": {"kind": "harmonizer", "hidden": 16, "rank": 1}}}),
        (MANIFEST, {"prompt_decoder": {"odd": {"dtype": "F32", "shape": [2]}}}),
    ],
)
def test_inspect_refuses_what_load_refuses(
    exchange: Path, copy_of: Callable[[str], Path], name: str, values: dict[str, Any]
) -> None:
    offer = copy_of("offer")
    forge(offer, name, **values)
    with pytest.raises(OffsiteError) as wanted:
        Offer.load(offer)
    start = time.perf_counter()
    with pytest.raises(OffsiteError) as alone:
        inspect_path(offer)
    with pytest.raises(OffsiteError) as as_base:
        inspect_path(exchange / "delta", str(offer))
    assert str(alone.value) == str(as_base.value) == str(wanted.value)
    assert time.perf_counter() - start < 5, "a model was built before it was vetted"


@pytest.mark.parametrize("name", ["evil[/x]", "[red]a", "[/]", ":cat: [bold]", "end\\"])
def test_brackets_of_a_stranger_are_shown_as_they_are(
    copy_of: Callable[[str], Path], run: Run, name: str
) -> None:
    offer, delta = copy_of("offer"), copy_of("delta")
    shown = name.replace("\\", "\\\\")  # as in messages: nothing but ASCII, backslashes twice
    method = {"kind": name, "part": name}
    forge(offer, MANIFEST, model_name=name, task=name)
    forge(delta, MANIFEST, model_name=name, labels=[name, "b"], method=method)
    status, out, err = run("inspect", offer)
    assert status == 0 and out.count(shown) >= 2, err
    for words in ([delta], [delta, "--base", offer]):
        status, out, err = run("inspect", *words)
        assert status == 0 and f"{shown}, b" in out and f"{shown}:part={shown}" in out, err
        assert f"{name}:part={name} delta" in out, "the head of the tree"


def test_brackets_in_a_record_and_in_paths_are_shown(
    exchange: Path, tmp_path: Path, run: Run
) -> None:
    record = Record.load(exchange / "record.json")
    recipe = [{"kind": "odd[/x]"}, {"kind": "[red]step"}]
    odd = record.replaced(record.offers[0], recipe=recipe).model_copy(
        update={"model_name": "evil[/x]"}
    )
    path = tmp_path / "[red]a[b].json"
    odd.write(path)
    status, out, err = run("inspect", path)
    assert status == 0 and "evil[/x]" in out and "odd[/x] > [red]step" in out, err
    assert "[red]a[b].json" in out


def test_a_quantised_offer_is_shown_with_its_own_layers(exchange: Path) -> None:
    loaded = Offer.load(exchange / "quantised")
    manifest, skeleton, _ = read_offer(exchange / "quantised")
    held = dict(held_tensors(skeleton))
    assert {n: tuple(t.shape) for n, t in held.items()} == {
        name: entry.shape for name, entry in manifest.tensors.items()
    }
    assert held.keys() == dict(held_tensors(loaded.model)).keys()
    total = sum(entry.count for entry in manifest.tensors.values())
    text = picture(*inspect_path(exchange / "quantised")[1])
    assert "quantised" in text and f"LlamaForCausalLM  {total:,}" in text
    assert "codes (32, 8)" in text and "scales (32, 1)" in text
    assert "0-1, 4 x3" in text and "2-3 x2" in text
    delta = Delta.load(exchange / "delta").manifest
    shapes = {name: entry.shape for name, entry in delta.tensors.items()}
    assert "codes (32, 8)" in picture(delta_tree("x", shapes, skeleton))


def slow_fold(children: dict[str, Node]) -> list[tuple[str, Node, int]]:
    """The reference: every numbered child compared with every one before it."""
    folded: list[tuple[list[str], Node]] = []
    for name, child in children.items():
        for names, first in folded:
            if name.isdigit() and names[0].isdigit() and first == child:
                names.append(name)
                break
        else:
            folded.append(([name], child))
    return [(n[0] if len(n) == 1 else ranges(map(int, n)), c, len(n)) for n, c in folded]


def test_folding_is_that_of_comparing_all() -> None:
    from offsite.report.structure import fold, kinds_of

    root = Node()
    for index in range(40):
        for name in ("a.0.w", "a.1.w", "b") if index % 3 else ("b", "a.1.w", "a.0.w"):
            root.add((str(index), *name.split(".")), (index % 4 // 2 + 1, 2), index % 5 == 0)
    for name in ("plain", "same"):
        root.add((name, "b"), (1, 2), False)
    kinds = kinds_of(root)
    for node in (root, root.children["7"], root.children["8"].children["a"]):
        assert list(fold(node.children, kinds)) == slow_fold(node.children)


def test_tens_of_thousands_of_numbered_tensors_fold_fast() -> None:
    root = Node()
    for index in range(40_000):
        root.add((str(index), "w"), (index + 1,), True)
    start = time.perf_counter()
    tree = draw("x", root)
    assert time.perf_counter() - start < 10 and len(tree.children) == 40_000
