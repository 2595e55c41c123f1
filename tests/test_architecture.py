"""The shape of the package: imports go one way, and the public names are these."""

from __future__ import annotations

import ast
from pathlib import Path

import offsite

SOURCE = Path(offsite.__file__).parent


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "offsite":
            found |= {f"offsite.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("offsite."):
            found.add(node.module or "")
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("offsite")}
    return found


def reachable(module: str) -> set[str]:
    """Everything a module imports, directly or through others."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = SOURCE / Path(*name.split(".")[1:])
        file = (
            path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        )
        waiting += imports(file)
    return seen


def test_the_tuner_never_reaches_the_owner() -> None:
    for start in ("offsite.tuner", "offsite.importing"):
        found = reachable(start)
        assert not [n for n in found if n.startswith(("offsite.compress", "offsite.owner"))], start
        assert not found & {"offsite.record", "offsite.lab", "offsite.serve"}


def test_layers_of_the_package_point_one_way() -> None:
    """A module may import only what stands in an earlier group."""
    groups = [
        {"errors", "files", "config", "progress", "resume", "watch"},
        {"blocks", "tensors", "stored", "layers", "checkpoint", "split", "replay", "heads",
         "prompt_decoder", "manifest", "vetting", "record"},
        {"offer", "delta", "disclosure", "train", "tasks", "scores", "statistics"},
        {"deltas", "compress"},
        {"tuner", "contract", "plugging", "owner", "importing", "structure"},
        {"serve", "plan", "cells", "measure", "environment", "harness", "card", "hub",
         "inspection"},
        {"scoring", "lab", "experiment", "sweep", "report", "tables", "checking"},
        {"cli", "demo", "__main__"},
    ]  # fmt: skip
    rank = {name: index for index, group in enumerate(groups) for name in group}
    for path in sorted(SOURCE.rglob("*.py")):
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in rank, f"{own} has no place in the architecture"
        for name in imports(path):
            parts = name.split(".")
            if len(parts) > 1:
                assert rank[parts[1]] <= rank[own], f"{path.relative_to(SOURCE)} imports {name}"


def test_public_names_are_pinned_and_load() -> None:
    names = (
        "BitFit Bottleneck Cluster Combined Delta DiffPruning Distill Drop FourierFT Full GradOT "
        "Head IA3 IntrinsicDimension IntrinsicPrompt Lab LayerReplace LoHa LoKr LoRA Masking "
        "Middle Noise OFT Offer OffsiteError Plan Prefix Prompt Prune Quantise Rank Record Scores "
        "Served Share Split TrainOptions VeRA ends learn_decoder load_plugged load_task make_offer "
        "plug run_tune tune"
    )
    assert sorted(offsite.__all__) == sorted(names.split())
    for name in offsite.__all__:
        assert getattr(offsite, name) is not None


def test_files_stay_readable() -> None:
    sizes = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCE.rglob("*.py")}
    long = {str(p.relative_to(SOURCE)): n for p, n in sizes.items() if n > 300}
    assert not long, long
    assert sorted(sizes.values())[len(sizes) // 2] <= 150
