"""Commands on a tiny model, each run in a process of its own, to be killed or to fill its disk.

:data:`CASES` are the commands, :func:`wrong` says what must never be left behind, and :func:`again`
runs a command once more and compares its result with that of an undisturbed run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import offsite as ot
from offsite.cli import main as command_line
from offsite.exchange.ledger import resolve_pending
from offsite.exchange.manifest import read_either
from offsite.signing.keys import make_key
from offsite.tasks import load_task
from offsite.training.resume import RUN

OPERATIONS = (
    "open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.link",
    "shutil.rmtree", "shutil.copytree",
)  # fmt: skip
LOG = Path(tempfile.gettempdir()) / f"offsite-{os.getpid()}.log"  # outside of the disk that is full
TRAINING = "--steps 6 --save-every 2 --batch-size 2 --max-length 16"


@dataclass(frozen=True)
class Case:
    """A command to kill.

    Attributes:
        words: the command; names of files are those of :func:`make_world`.
        out: what it writes, compared with an undisturbed run by the hash of ``compared``.
        resumes: whether it keeps a work folder.
    """

    words: str
    out: str
    compared: str
    resumes: bool = False


CASES = {
    "offer": Case(
        "offer model --out made --adapter ends:2,1 --keep 1", "made", "model.safetensors"
    ),
    "distil": Case(
        "offer model --out made --adapter ends:2,1 --keep 1 --distill-steps 4 --data t.txt "
        "--max-length 16", "made", "model.safetensors", resumes=True,
    ),
    "tune": Case(
        f"tune offer --data t.txt --delta lora:rank=2 --out made {TRAINING}", "made",
        "adapter_model.safetensors", resumes=True,
    ),
    "plug": Case(
        "plug model delta --record offer.record.json --out made", "made", "model.safetensors"
    ),
    "plug-apart": Case(
        "plug model delta --record offer.record.json --out made --as-adapter", "made",
        "adapter_model.safetensors",
    ),
    "import": Case("delta import offer delta --out made", "made", "adapter_model.safetensors"),
    "export": Case("delta export offer delta --out made", "made", "delta.safetensors"),
    "card": Case("card offer --licence apache-2.0", "offer", "manifest.json"),
    "sign": Case("sign delta", "delta", "manifest.json"),
}  # fmt: skip


def make_world(folder: Path) -> None:
    """A model of six small blocks, an offer of it with its record, a delta, a text and a key."""
    os.environ["OFFSITE_HOME"] = str(folder / "keys")
    make_key()
    torch.manual_seed(0)
    letters = {letter: index for index, letter in enumerate(["<end>", *map(chr, range(32, 127))])}
    core = Tokenizer(models.WordLevel(letters, unk_token="<end>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    LlamaForCausalLM(LlamaConfig(vocab_size=96, **sizes, **heads, **ends)).save_pretrained(
        folder / "model"
    )
    tokenizer.save_pretrained(folder / "model")
    (folder / "t.txt").write_text("the cat sat on the mat and the dog sat on the log. " * 20)
    offer, _ = ot.make_offer(folder / "model", adapter=ot.ends(2, 1), recipe=[ot.Drop(keep=1)])
    offer.save(folder / "offer")
    delta = ot.tune(
        ot.Offer.load(folder / "offer"), folder / "t.txt", ot.LoRA(rank=2),
        options=ot.TrainOptions(steps=1, batch_size=2), task=load_task("text", max_length=16),
    )  # fmt: skip
    delta.save(folder / "delta")


def run(folder: Path, words: str, kill_at: int | None = None) -> tuple[int, int, str]:
    """Run a command in a forked process: its exit status, file operations and last words."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        os.environ["OFFSITE_HOME"] = str(folder / "keys")
        count = 0

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event not in OPERATIONS:
                return
            first = arguments[0]
            given = isinstance(first, (str, bytes, os.PathLike))
            path = str(Path(os.fsdecode(first)).absolute()) if given else ""  # type: ignore[arg-type]
            if path.startswith(str(folder)):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        sys.argv = ["offsite", *words.split()]
        status = 0
        try:
            command_line()
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException as error:  # a traceback is a finding
            print(f"TRACEBACK {type(error).__name__}: {error}", flush=True)
            status = 99
        sys.stdout.flush()
        os.write(writer, str(count).encode())
        os._exit(status)
    os.close(writer)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count_text = os.read(reader, 20)
    os.close(reader)
    lines = LOG.read_text(errors="replace").strip().splitlines()
    return status, int(count_text or 0), lines[-1] if lines else ""


def digest(folder: Path, case: Case) -> str:
    """The hash that says whether a result is the undisturbed run's; the folder must be good."""
    if not case.words.startswith("plug"):
        read_either(folder / case.out)
    if case.out == "made":
        return hashlib.sha256((folder / case.out / case.compared).read_bytes()).hexdigest()
    return "whole"


def wrong(folder: Path, case: Case) -> str | None:
    """What must never be seen after a kill, or None."""
    try:
        record = resolve_pending(ot.Record.load(folder / "offer.record.json"))
        there = (folder / case.out).exists()
        if case.out != "made" and not there:
            return "the folder is gone"
        if there:
            digest(folder, case)
        if case.words.startswith("offer") and there:
            ot.Record.load(folder / "made.record.json").find(read_either(folder / "made").id)
        if case.words.startswith("plug") and there != bool(record.offers[0].accepted):
            return "model and ledger do not agree"
    except (ot.OffsiteError, OSError) as error:
        return str(error).replace(str(folder), "")
    return None


def again(folder: Path, case: Case, expected: str) -> str | None:
    """Run the command once more after a kill; what is wrong with that, or None."""
    done = case.out == "made" and (folder / "made").exists()
    if not done:
        begun = (folder / "made.work" / RUN).is_file()  # before that, nothing can be resumed
        tries = [f"{case.words} --resume", case.words] if begun and case.resumes else [case.words]
        for words in tries:
            status, _, last = run(folder, words)
            if status == 0:
                break
        else:
            return f"cannot go on: {last}"
        if case.resumes and begun and words == case.words:
            return "the run could not be resumed"
    if digest(folder, case) != expected:
        return "another result than an undisturbed run"
    left = [p.name for p in folder.iterdir() if p.name.startswith(".")]
    return f"left behind: {left[0].split('.')[1]}" if left and not done else None


def try_all(
    attempt: Callable[[str, Path], int], parser: argparse.ArgumentParser, heading: str
) -> None:
    """Parse the command line, make the world below ``--out``, and try the commands named, or all.

    Args:
        attempt: given the name of a command and the folder; prints a line, returns the faults.
        parser: what the script takes beside ``--out`` and names.
        heading: the columns of the table.

    Raises:
        SystemExit: with status 1 if there were faults, else 0.
    """
    parser.add_argument("names", nargs="*", metavar="command", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    base = options.out.absolute()
    shutil.rmtree(base, ignore_errors=True)
    (base / "world").mkdir(parents=True)
    make_world(base / "world")
    torch.set_num_threads(1)
    print(f"| {heading.replace(', ', ' | ')} |\n{'|---' * (1 + heading.count(','))}|", flush=True)
    faults = sum(attempt(name, base) for name in options.names or CASES)
    LOG.unlink(missing_ok=True)
    raise SystemExit(1 if faults else 0)
