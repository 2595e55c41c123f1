"""The model owner serves several deltas on one model in memory.

offsite plug MODEL delta-a/ --record a.record.json --as-adapter --out plugged-a/
offsite plug MODEL delta-b/ --record b.record.json --as-adapter --out plugged-b/
python examples/serving/owner.py MODEL "The weather" plugged-a/ plugged-b/
"""

import sys
from typing import Any

import transformers

import offsite as ot


def serve(model: str, prompt: str, *plugged: str) -> dict[str, str]:
    """Complete a prompt with the plain model, each delta, and all deltas in equal parts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    served = ot.Served(transformers.AutoModelForCausalLM.from_pretrained(model))
    for folder in plugged:
        served.add(folder, folder)
    runner: Any = served.model
    batch = tokenizer(prompt, return_tensors="pt")

    def complete() -> str:
        tokens = runner.generate(**batch, max_new_tokens=8, do_sample=False)
        return str(tokenizer.decode(tokens[0]))

    answers = {"the plain model": complete()}
    for folder in plugged:
        served.switch(folder)
        answers[folder] = complete()
    served.switch(**{folder: 1 / len(plugged) for folder in plugged})
    answers["all"] = complete()
    served.switch()  # bit for bit the plain model again
    return answers


if __name__ == "__main__":
    model, prompt, *plugged = sys.argv[1:]
    for name, answer in serve(model, prompt, *plugged).items():
        print(f"{name}: {answer!r}")
