"""Every hostile offer and delta we know, each made from a good one, with the answer it must get.

An entry is: a name, what is done to the folder, a part of the sentence that refuses it. Unless the
attack is on integrity itself, hashes are made to agree, as a malicious sender would.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from offsite.exchange.file_set import MANIFEST
from tests.support.forge import (
    Attack,
    both,
    dump,
    edit,
    first,
    header,
    load,
    manifest,
    raw_manifest,
    seal,
    write,
)

WEIGHTS = "model.safetensors"
NORM = "model.norm.weight"


def flip(name: str) -> Attack:
    def attack(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)

    return attack


def truncate(name: str) -> Attack:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 1)


def link(folder: Path) -> None:
    (folder / "secret.txt").symlink_to("/etc/hostname")


def link_weights(folder: Path) -> None:
    name = next(path.name for path in folder.glob("*.safetensors"))
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)


def nest(folder: Path) -> None:
    (folder / "sub").mkdir()


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.txt")


def rename_file(old: str, new: str) -> Attack:
    """Move an entry of the manifest's files to another name, and the file if that is possible."""

    def attack(folder: Path) -> None:
        content = load(folder / MANIFEST)
        content["files"][new] = content["files"].pop(old)
        dump(folder / MANIFEST, content)
        if "/" not in new:
            (folder / old).rename(folder / new)

    return attack


def declare(name: str, **values: Any) -> Attack:
    """Lie about one tensor in the manifest."""

    def attack(folder: Path) -> None:
        content = load(folder / MANIFEST)
        content["tensors"][name] |= values
        dump(folder / MANIFEST, content)

    return attack


def retitle(old: str, new: str) -> Attack:
    """Rename a tensor in header and manifest alike."""

    def attack(folder: Path) -> None:
        file = next(folder.glob("*.safetensors")).name
        header(file, lambda head: head.__setitem__(new, head.pop(old)))(folder)
        content = load(folder / MANIFEST)
        content["tensors"][new] = content["tensors"].pop(old)
        dump(folder / MANIFEST, content)

    return attack


def poison(value: bytes) -> Attack:
    """Overwrite the last four bytes of the weights, sealed."""

    def attack(folder: Path) -> None:
        path = next(folder.glob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:-4] + value)
        seal(folder)

    return attack


def set_first(**values: Any) -> Any:
    return lambda head: first(head).update(values)


def shift(head: dict[str, Any]) -> None:
    """Let the first two tensors of a header start at the same place."""
    entries = [value for key, value in head.items() if key != "__metadata__"]
    size = entries[1]["data_offsets"][1] - entries[1]["data_offsets"][0]
    start = entries[0]["data_offsets"][0]
    entries[1]["data_offsets"] = [start, start + size]


def shards(weight_map: Any) -> Attack:
    """Turn the single weights file into a shard with a forged index."""

    def attack(folder: Path) -> None:
        shard = "model-00001-of-00001.safetensors"
        (folder / WEIGHTS).rename(folder / shard)
        names = load(folder / MANIFEST)["tensors"]
        write("model.safetensors.index.json", json.dumps({"weight_map": weight_map(names)}))(folder)

    return attack


HARMONIZER = {"kind": "harmonizer", "hidden": 10**6, "rank": 10**6}

# integrity and format: the same for both kinds of folder; {file} is the weights file
COMMON: list[tuple[str, Any, str]] = [
    ("a changed byte", lambda w: flip(w), "SHA-256"),
    ("a truncated file", lambda w: truncate(w), "truncated or was changed"),
    ("a missing file", lambda w: lambda folder: (folder / w).unlink(), "is missing"),
    ("an extra file", lambda w: lambda f: (f / "x.txt").write_text("x"), "not in the manifest"),
    ("no manifest", lambda w: lambda f: (f / MANIFEST).unlink(), "has no manifest.json"),
    ("a symbolic link", lambda w: link, "not a regular file"),
    ("weights as a symbolic link", lambda w: link_weights, "not a regular file"),
    ("a sub-folder", lambda w: nest, "not a regular file"),
    ("a named pipe", lambda w: pipe, "not a regular file"),
    ("control characters in a name", lambda w: write("a\x1b[2J.txt"), "letters, digits"),
    ("a zero-width space in a name", lambda w: write("README\u200b.md"), "letters, digits"),
    ("a Cyrillic letter in a name", lambda w: write("c\u043enfig.json"), "letters, digits"),
    ("names that differ in case", lambda w: write(w.upper()), "upper and lower case"),
    ("a hidden file", lambda w: write(".netrc"), "letters, digits"),
    ("a pickled file", lambda w: write("pytorch_model.bin", b"\x80\x04."), "hold"),
    ("a Python file", lambda w: write("modeling.py", "import os"), "hold"),
    ("a path out of the folder", lambda w: rename_file(w, f"../{w}"), "and no folder"),
    ("an unknown key", lambda w: manifest(surprise=1), "surprise: extra inputs"),
    ("an escape sequence as a key", lambda w: manifest(**{"\x1b[2J": 1}), r"\\x1b"),
    ("another version", lambda w: manifest(schema_version=2), "schema version 2"),
    ("a version that is True", lambda w: manifest(schema_version=True), "schema version True"),
    ("another kind", lambda w: manifest(kind="recipe"), "folder of kind 'recipe'"),
    ("a list as manifest", lambda w: raw_manifest(lambda _: "[]"), "no manifest"),
    ("a key twice", lambda w: raw_manifest(lambda t: '{"kind": "x",' + t[1:]), "same key twice"),
    ("NaN", lambda w: raw_manifest(lambda t: '{"q": NaN,' + t[1:]), "not finite"),
    ("a float too large", lambda w: raw_manifest(lambda t: '{"q": 1e999,' + t[1:]), "not finite"),
    ("a number of 10000 digits", lambda w: raw_manifest(lambda t: "9" * 10000), "not valid JSON"),
    ("deep nesting", lambda w: raw_manifest(lambda t: "[" * 10**6), "not valid JSON"),
    ("UTF-16", lambda w: lambda f: (f / MANIFEST).write_text("{}", "utf-16"), "not valid JSON"),
    ("a manifest of 17 MB", lambda w: raw_manifest(lambda t: t + " " * 17 * 2**20), "larger than"),
    ("control characters in a value", lambda w: manifest(model_name="a\x1b]0;b"), "cannot be seen"),
    ("right-to-left override", lambda w: manifest(model_name="a\u202eb"), "cannot be seen"),
    ("a very long name", lambda w: manifest(model_name="a" * 10**6), "at most 200"),
    ("a time without a zone", lambda w: manifest(created="2026-01-01T00:00:00"), "created"),
    ("an adapter that repeats", lambda w: manifest(adapter=[0, 0]), "ascending"),
    ("a negative adapter", lambda w: manifest(adapter=[-1, 0]), "adapter"),
    ("no adapter", lambda w: manifest(adapter=[]), "ascending"),
    ("scores that are code", lambda w: manifest(scores={"a": [[[]]]}), "scores"),
    ("a header of 5 MB", lambda w: header(w, lambda h: b" " * 5 * 2**20), "larger than 4 MB"),
    ("a header that is a list", lambda w: header(w, lambda h: b"[]"), "header is malformed"),
    ("a header cut short", lambda w: write(w, b"\xff" * 7), "truncated"),
    ("a header length of 2^64", lambda w: write(w, b"\xff" * 64), "truncated or larger"),
    ("more metadata", lambda w: header(w, lambda h: h.update(__metadata__={"a": "b"})), "metadata"),
    ("bytes after the end", lambda w: header(w, lambda h: None, tail=b"PK"), "after its last"),
    ("overlapping tensors", lambda w: header(w, shift), "overlap|disagrees"),
    ("a shape that is too large", lambda w: header(w, set_first(shape=[2**30, 2**30])), "disagree"),
    ("a shape without end", lambda w: header(w, set_first(shape=[1] * 99)), "unknown dtype, shape"),
    ("a negative shape", lambda w: header(w, set_first(shape=[-1, -4])), "unknown dtype, shape"),
    ("an empty tensor", lambda w: header(w, set_first(shape=[0])), "unknown dtype, shape"),
    ("a shape of strings", lambda w: header(w, set_first(shape=["16"])), "unknown dtype, shape"),
    ("offsets that are floats", lambda w: header(w, set_first(data_offsets=[0.0, 4.0])), "offset"),
    ("an unknown dtype", lambda w: header(w, set_first(dtype="F8_E4M3")), "unknown dtype"),
    ("a dtype that lies", lambda w: header(w, set_first(dtype="I32")), "not those of the manifest"),
    ("a tensor called ../x", lambda w: header(w, lambda h: h.update({"../x": 1})), "unusual"),
    ("NaN in a tensor", lambda w: poison(b"\x00\x00\xc0\x7f"), "NaN or infinity"),
    ("infinity in a tensor", lambda w: poison(b"\x00\x00\x80\xff"), "NaN or infinity"),
]  # fmt: skip

OFFER: list[tuple[str, Attack, str]] = [
    ("remote code in the configuration", edit("config.json", auto_map={"A": "x.Y"}), "run code"),
    ("remote code, nested", edit("config.json", text={"auto_map": {"A": "x--y.Z"}}), "run code"),
    ("trust_remote_code", edit("config.json", trust_remote_code=True), "could run code"),
    ("a quantiser", edit("config.json", quantization_config={"quant_method": "gptq"}), "loader"),
    ("attention from the hub", edit("config.json", attn_implementation="evil/x"), "repository"),
    ("a backbone from the hub", edit("config.json", backbone="evil/net"), "repository"),
    ("a local path", edit("config.json", _name_or_path="/home/alice/model"), "leads to other"),
    ("a dtype that is a function", edit("config.json", dtype="load"), "floating-point dtype"),
    ("a million blocks", edit("config.json", num_hidden_layers=10**6), "larger than any real"),
    ("2000 blocks", edit("config.json", num_hidden_layers=2000), "tensors can fill"),
    ("one block too many", edit("config.json", num_hidden_layers=5), "more parameters than its"),
    ("one block too few", edit("config.json", num_hidden_layers=3), "adapter"),
    ("a hidden size of 10^9", edit("config.json", hidden_size=10**9), "larger model than"),
    ("a vocabulary of 10^9", edit("config.json", vocab_size=10**9), "larger model than"),
    ("10^9 labels", edit("config.json", num_labels=10**9), "larger than any real"),
    ("a head of width 10^9", edit("config.json", head_dim=10**9), "larger model than"),
    ("no heads", edit("config.json", num_attention_heads=0), "Cannot load|cannot be built"),
    ("hidden size as text", edit("config.json", hidden_size="many"), "Cannot load|cannot be built"),
    ("a family nobody knows", edit("config.json", model_type="nobody"), "not one that"),
    ("a family that is a list", edit("config.json", model_type=[[]]), "not one that"),
    ("a family of another kind", edit("config.json", model_type="vit"), "cannot be built|Cannot"),
    ("a list as configuration", write("config.json", "[]"), "not a JSON object"),
    ("NaN in the configuration", write("config.json", '{"a": NaN}'), "not finite"),
    ("no configuration", both(lambda f: (f / "config.json").unlink(), seal), "no config.json"),
    ("a peft adapter inside", write("adapter_config.json", "{}"), "may hold only"),
    ("weights twice", write("offer.safetensors", b"\x02\0\0\0\0\0\0\0{}"), "would not all read"),
    ("an index out of the folder", shards(lambda n: dict.fromkeys(n, "../a")), "names files"),
    ("an index that omits a tensor", shards(lambda n: {}), "does not list"),
    ("a renamed tensor", retitle(NORM, "model.norm.wait"), "do not fit its architecture"),
    ("a tensor of another shape", declare(NORM, shape=[4, 4]), "not of the shape"),
    ("a manifest of giant shapes", declare(NORM, shape=[2**39, 2**39]), "not of the shape"),
    ("a weight declared integer", declare(NORM, dtype="I32"), "not of the shape or kind"),
    ("adapter out of range", manifest(adapter=[0, 1, 9]), "not among its 4 blocks"),
    ("another block list", manifest(block_path="model"), "block list is not where"),
    ("a contract for the head", edit(MANIFEST, contract__tensors={
        "lm_head.weight": {"dtype": "F32", "shape": [300, 16]}}), "return contract"),
    ("an infinite norm", raw_manifest(lambda t: t.replace('"max_norm": ', '"max_norm": 1e999')),
     "finite"),
    ("a negative byte cap", edit(MANIFEST, contract__max_bytes=-1), "max_bytes"),
    ("an unknown layer", manifest(layers={"model.layers.2": {"kind": "exec"}}), "layers"),
    ("a layer of giant size", both(manifest(layers={"model.layers.2": HARMONIZER}),
     rename_file(WEIGHTS, "offer.safetensors")), "more parameters than its tensors"),
    ("a layer outside the blocks", both(manifest(layers={"lm_head": HARMONIZER}),
     rename_file(WEIGHTS, "offer.safetensors")), "not part of a block"),
    ("a layer that is not there", both(manifest(layers={"model.layers.77": HARMONIZER}),
     rename_file(WEIGHTS, "offer.safetensors")), "which its model lacks"),
    ("blocks shared in a circle", both(manifest(shared={"2": 2}),
     rename_file(WEIGHTS, "offer.safetensors")), "impossible"),
    ("an adapter block that is shared", both(manifest(shared={"1": 0}),
     rename_file(WEIGHTS, "offer.safetensors")), "not among"),
    ("remote code in the tokenizer", edit("tokenizer_config.json", auto_map={"A": "x.Y"}), "code"),
    ("a tokenizer that is a model", edit("tokenizer_config.json", tokenizer_class="AutoModel"),
     "class that is not allowed"),
    ("a tokenizer that reads a file", edit("tokenizer_config.json", vocab_file="/etc/passwd"),
     "leads to other files"),
    ("arguments of the tokenizer", edit("tokenizer_config.json", init_inputs=["/etc/passwd"]),
     "leads to other files"),
    ("a damaged tokenizer", write("tokenizer.json", '{"model": 1}'), "cannot be read"),
    ("a tokenizer that is no JSON", write("tokenizer.json", "\x00"), "not valid JSON"),
    ("a padding that is a word", edit("generation_config.json", pad_token_id="x"), "not valid"),
    ("a generation that runs code", edit("generation_config.json", trust_remote_code=True), "code"),
    ("a giant image size", write("preprocessor_config.json", '{"size": {"height": 1000000000000}}'),
     "makes pictures larger"),
]  # fmt: skip


def together(part: dict[str, Any]) -> dict[str, Any]:
    """A combination of a method with a prompt."""
    return {"kind": "combined", "methods": [part, {"kind": "prompt"}]}


DELTA: list[tuple[str, Attack, str]] = [
    ("a configuration of a model", write("config.json"), "nothing else"),
    ("weights twice", write("delta.safetensors", b"\x02\0\0\0\0\0\0\0{}"), "nothing else"),
    ("no peft configuration", both(lambda f: (f / "adapter_config.json").unlink(), seal), "lacks"),
    ("peft: a class of its own", edit("adapter_config.json", auto_mapping={"a": "b"}), "auto_map"),
    ("peft: whole modules", edit("adapter_config.json", modules_to_save=["lm_head"]), "modules_to"),
    ("peft: another model", edit("adapter_config.json", base_model_name_or_path="e/m"), "base_mod"),
    ("peft: no method", edit("adapter_config.json", peft_type=None), "does not name a peft method"),
    ("peft: a list", write("adapter_config.json", "[]"), "does not name a peft method"),
    ("peft: 5 MB", write("adapter_config.json", "{}" + " " * 5 * 2**20), "more than"),
    ("a method without a kind", manifest(method={"rank": 2}), "name its kind"),
    ("a kind that is a list", manifest(method={"kind": ["lora"]}), "name its kind"),
    ("a rank of 10^9", edit(MANIFEST, method__rank=10**9), "more than its tensors can hold"),
    ("a rank as text", edit(MANIFEST, method__rank="1000000000"), "more than its tensors"),
    ("a method with nested data", edit(MANIFEST, method__rank={"a": {}}), "method"),
    ("a large rank within", manifest(method=together({"kind": "lora", "rank": 10**9})), "can hold"),
    ("methods within methods", manifest(method=together(together({"kind": "lora"}))), "method"),
    ("a part without a kind", manifest(method=together({"rank": 2})), "method"),
    ("a parent that is a path", manifest(parent="../../offer"), "parent"),
    ("round zero", manifest(round=0), "round"),
]  # fmt: skip

# found when plugging: what only the owner's record can tell
PLUG: list[tuple[str, Attack, str]] = [
    ("another offer", manifest(parent="0" * 32), "not in this record"),
    ("other adapter blocks", manifest(adapter=[1, 2, 3]), "the offer's adapter is"),
    ("an unknown method", manifest(method={"kind": "exec"}), "is not a delta method"),
    ("an unknown option", edit(MANIFEST, method__code="x"), "has no option 'code'"),
    ("no combination", manifest(method={"kind": "combined", "methods": ["lora"]}), "not a delta"),
    ("one more method", manifest(method=together({"kind": "lora", "rank": 2})), "lacks"),
    ("another rank", edit(MANIFEST, method__rank=4), "has shape"),
    ("values of norm 10^9", poison(b"\x28\x6b\x6e\x4e"), "norm"),
]  # fmt: skip
