"""The shape of the package: imports go one way, and the public names are these."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import offsite

SOURCE = Path(offsite.__file__).parent


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "offsite":
            names = {name.name for name in node.names} - {"__version__"}
            found |= {f"offsite.{name}" for name in names}
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


PACKAGES = (
    "errors", "files", "signing", "codec", "model", "training", "exchange", "tasks", "compress",
    "deltas", "tuner", "owner", "scores", "report", "publish", "lab", "audit", "demo", "cli",
    "__main__", "offer", "importing",
)  # fmt: skip


def test_the_tuner_never_reaches_the_owner() -> None:
    found = reachable("offsite.tuner.tuning") | reachable("offsite.tuner.importing")
    owners = ("offsite.compress", "offsite.owner", "offsite.lab", "offsite.exchange.record")
    assert not [name for name in found if name.startswith(owners)]


def test_imports_between_packages_point_one_way() -> None:
    """A package may import only what stands before it; no two have equal rank."""
    rank = {name: index for index, name in enumerate(PACKAGES)}
    for path in sorted(SOURCE.rglob("*.py")):
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in rank, f"{own} has no place in the architecture"
        for name in imports(path):
            parts = name.split(".")
            if len(parts) > 1 and parts[1] != own:
                assert rank[parts[1]] < rank[own], f"{path.relative_to(SOURCE)} imports {name}"


def test_every_package_says_what_it_is_for() -> None:
    for folder in {path.parent for path in SOURCE.rglob("*.py")}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))), folder


def test_no_imports_go_in_circles() -> None:
    modules = {path: imports(path) for path in SOURCE.rglob("*.py") if path.name != "__init__.py"}
    names = {"offsite." + ".".join(p.relative_to(SOURCE).with_suffix("").parts): p for p in modules}
    graph = {name: imports(path) & names.keys() for name, path in names.items()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_public_names_are_pinned_and_load() -> None:
    names = (
        "Align BitFit Bottleneck Cluster Combined Delta DiffPruning Distill Drop FourierFT Full "
        "GradOT Head IA3 IntrinsicDimension IntrinsicPrompt Lab LayerReplace LoHa LoKr LoRA "
        "Masking Middle Narrow Noise OFT Offer OffsiteError Plan Prefix Prompt Prune Quantise "
        "Rank Recipe Record Scores Served Share Split TrainOptions Tuned VeRA ends learn_decoder "
        "load_plugged load_task make_offer plug run_tune tune"
    )
    assert sorted(offsite.__all__) == sorted(names.split())
    for name in offsite.__all__:
        assert getattr(offsite, name) is not None


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse(Path(offsite.__file__).read_text("utf-8"))
    typed = {
        (node.module, name.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("offsite.")
        for name in node.names
    }
    homes = {
        (f"offsite.{home}", n) for home, names in offsite._HOMES.items() for n in names.split()
    }
    assert typed == homes


def test_files_stay_readable() -> None:
    sizes = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCE.rglob("*.py")}
    long = {str(p.relative_to(SOURCE)): n for p, n in sizes.items() if n > 300}
    assert not long, long
    assert sorted(sizes.values())[len(sizes) // 2] <= 150


def lines_of_functions(folder: Path) -> dict[str, int]:
    """Lines of every function below a folder, with its signature and docstring."""
    return {
        f"{path.relative_to(SOURCE)}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }


def test_functions_stay_readable() -> None:
    sizes, commands = lines_of_functions(SOURCE), lines_of_functions(SOURCE / "cli")
    long = {name: n for name, n in sizes.items() if n > (60 if name in commands else 80)}
    assert not long, long
