"""Both roles on a small built-in language model, in one command and without a network.

The model owner is the package: 16 LLaMA blocks, 3.9M parameters, pretrained on public-domain books
by ``benchmarks/pretrain/language.py``. The data owner's private text is what every Python carries:
the language reference in ``pydoc_data.topics``. The owner's public text is the docstrings of the
standard library. So small a model shows how it works, not how well: a pretrained one behaves
otherwise, see ``benchmarks/results``.
"""

from __future__ import annotations

import ast
from pathlib import Path

from offsite.compress.align import Align
from offsite.compress.drop import Drop
from offsite.compress.recipe import Recipe
from offsite.files import check_free, write_file
from offsite.lab.plan import Plan
from offsite.training.options import TrainOptions

MODEL = Path(__file__).parent / "model"
LR = 5e-4  # of the adapter
FULL_LR = (1e-3,)  # of every weight
PUBLIC = 300_000  # characters of public text
ALIGN = Align(steps=40, lr=1e-3)


def make_plan(out: Path, steps: int, seed: int) -> Plan:
    """The demo as a plan of the lab; its texts are written below ``out``.

    Raises:
        OffsiteError: ``out`` exists.
    """
    check_free(out)
    train, test = private_text(out / "private")
    return Plan(
        model=str(MODEL),
        data=str(train),
        eval_data=str(test),
        calibration=str(public_text(out / "public.txt")),
        max_length=128,
        recipes={
            "uniform 2-8-2": Recipe((Drop(keep=8),)),
            "influence 2-6-2, aligned": Recipe((Drop(keep=6, by="influence"), ALIGN)),
        },
        deltas={"full": {"kind": "full"}},
        seeds=(seed,),
        options=TrainOptions(steps=steps, lr=LR),
        full_lr=FULL_LR,
    )


def private_text(folder: Path) -> tuple[Path, Path]:
    """Python's language reference as two files: every eighth topic is kept to score on."""
    from pydoc_data.topics import topics

    texts = [topics[name].strip() for name in sorted(topics)]
    train, test = folder / "train.txt", folder / "test.txt"
    write_file(train, "\n\n".join(t for i, t in enumerate(texts) if i % 8) + "\n")
    write_file(test, "\n\n".join(texts[::8]) + "\n")
    return train, test


def public_text(path: Path) -> Path:
    """Docstrings of the standard library's modules, functions and classes, in one file."""
    found: list[str] = []
    for source in sorted(Path(ast.__file__).parent.glob("*.py")):
        tree = ast.parse(source.read_text(encoding="utf-8"))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
        found += [text for node in nodes if (text := ast.get_docstring(node))]
        if sum(map(len, found)) > PUBLIC:
            break
    write_file(path, "\n\n".join(found)[:PUBLIC] + "\n")
    return path
