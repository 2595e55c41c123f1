"""A tokenizer's conventions: the tokens around a text, and the border of prompt and answer.

Every row of every text task is made here, so that it holds what the tokenizer's own convention
says: a begin token where the tokenizer adds one, and an end token only at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import processors

from offsite.errors import OffsiteError
from offsite.model.kind import text_config

PROBE = "a b"
BEFORE = ("\n", "|", "0")  # characters that rarely melt into one token with what follows


@dataclass(frozen=True)
class Convention:
    """The token ids that a tokenizer puts around every text.

    Attributes:
        begin: before it; none for many tokenizers.
        end: after an example that is complete: what the tokenizer appends, else its end-of-text
            token, else nothing.
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def of(cls, processor: Any) -> Convention:
        """The convention of a tokenizer, tried on a short text.

        Raises:
            OffsiteError: the tokenizer puts tokens inside a text.
        """
        plain = encode(processor, PROBE)
        whole = [int(i) for i in processor(PROBE, verbose=False)["input_ids"]]
        size = len(plain)
        starts = range(len(whole) - size + 1)
        start = next((s for s in starts if whole[s : s + size] == plain), None)
        if start is None:
            raise OffsiteError(
                "The tokenizer changes a text when it adds its begin and end tokens, so rows "
                "cannot be made with it; use a tokenizer that puts them around the text."
            )
        appended, eos = tuple(whole[start + size :]), processor.eos_token_id
        return cls(tuple(whole[:start]), appended or (() if eos is None else (eos,)))

    def begun(self, ids: list[int]) -> list[int]:
        """Token ids with the begin token before them, where they do not start with it already."""
        begin = list(self.begin)
        return ids if begin and ids[: len(begin)] == begin else begin + ids

    def ended(self, ids: list[int]) -> list[int]:
        """Token ids with the end token after them, where they do not stop with it already."""
        end = list(self.end)
        return ids if end and ids[-len(end) :] == end else ids + end


def without_end(processor: Any) -> Any:
    """A tokenizer that begins a text as this one does, and appends nothing; itself where it can.

    Tools that cut an answer out of the ids of prompt and answer, as lm-eval does, cut at the wrong
    place where the tokenizer appends a token.
    """
    probe = encode(processor, PROBE)
    appended = [int(i) for i in processor(PROBE, verbose=False)["input_ids"]][-1:] != probe[-1:]
    if not appended or not hasattr(processor, "_tokenizer"):
        return processor
    begin = processor.convert_ids_to_tokens(list(Convention.of(processor).begin))
    plain = copy.deepcopy(processor)
    plain._tokenizer.post_processor = processors.TemplateProcessing(
        single=[*begin, "$A"],
        pair=[*begin, "$A", "$B:1"],
        special_tokens=[(token, processor.convert_tokens_to_ids(token)) for token in set(begin)],
    )
    return plain


def encode(processor: Any, text: str) -> list[int]:
    """Token ids without special tokens, however long the text.

    Raises:
        OffsiteError: a tokenizer that fails; its own words are left out, because they may quote
            the text.
    """
    try:
        found = processor(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [int(i) for i in found]
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise OffsiteError(
            f"The tokenizer cannot read the text ({type(error).__name__}); it is damaged or "
            "lacks an unknown token, so replace its files with the original ones."
        ) from None


def encode_after(
    processor: Any, prompt: str, endings: Sequence[str], where: str
) -> tuple[list[int], list[list[int]]]:
    """Token ids of a prompt, and of each text that may follow it, without special tokens.

    As in EleutherAI's lm-eval the two are encoded together and cut where the prompt ends, and
    spaces at the prompt's end belong to what follows. Where a token would reach over the cut,
    lm-eval cuts inside the answer; here the two are encoded apart, so that the ids of each decode
    to its text.

    Raises:
        OffsiteError: an answer that has no token ids of its own, or whose ids and those of the
            prompt do not decode to the two together.
    """
    stripped = prompt.rstrip()
    gap = prompt[len(stripped) :]
    start = encode(processor, stripped)
    tails = []
    for ending in endings:
        whole = encode(processor, stripped + gap + ending)
        tail = whole[len(start) :]
        if whole[: len(start)] != start:  # a token reaches over the cut
            tail = encode_inside(processor, gap + ending)
            if processor.decode(start + tail) != processor.decode(whole):
                raise OffsiteError(
                    f"{where} has a prompt and an answer that the tokenizer joins into one token "
                    "where they meet; end the prompt, or begin the answer, with a space."
                )
        tails.append(tail)
    if not all(tails):
        raise OffsiteError(
            f"{where} has an answer or a choice without tokens: the tokenizer drops all of it; "
            "change it or remove the line."
        )
    return start, tails


def encode_inside(processor: Any, text: str) -> list[int]:
    """Token ids of a text that follows another, without the space some tokenizers prepend."""
    for before in BEFORE:
        start, whole = encode(processor, before), encode(processor, before + text)
        if start and whole[: len(start)] == start:
            return whole[len(start) :]
    return encode(processor, text)


def check_embedded(rows: Iterable[Sequence[int]], processor: Any, config: Any) -> None:
    """Refuse token ids that the model has no embedding for, and rows of unknown tokens.

    Args:
        rows: token ids.
        config: the model's configuration; None where it is unknown.

    Raises:
        OffsiteError: an id at or over the size of the vocabulary (the token is named), or a
            tokenizer that knows less than half of the tokens.
    """
    rows, text = list(rows), text_config(config)
    size = getattr(text, "vocab_size", None)
    highest = max((max(ids) for ids in rows if ids), default=-1)
    if size is not None and highest >= size:
        raise OffsiteError(
            f"The tokenizer gives the token '{processor.convert_ids_to_tokens(highest)}' the id "
            f"{highest}, but the model's embedding has {size} rows; use the tokenizer that belongs "
            "to the model, or resize the embedding first (resize_token_embeddings)."
        )
    unknown, total = processor.unk_token_id, sum(map(len, rows))
    roles = (processor.eos_token_id, processor.bos_token_id, processor.pad_token_id)
    if unknown is None or unknown in roles:  # as in GPT-2, whose unknown token is its end of text
        return
    count = sum(list(ids).count(unknown) for ids in rows)
    if count > total / 2:
        raise OffsiteError(
            f"The tokenizer does not know {count:,} of the {total:,} tokens of the data, so there "
            "is next to nothing to learn or to score; use data in a language that the tokenizer "
            "knows, or the tokenizer that belongs to the model."
        )
