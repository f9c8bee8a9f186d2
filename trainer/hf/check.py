"""An exported directory, loaded by transformers in a process of its own, gives the logits that Luban's model gave.

`python -m trainer.hf.check DIRECTORY QUESTION` with a safetensors file of inputs and expected outputs; prints one JSON
line. A process of its own, because importing transformers takes 14 s and hundreds of MB, which nothing else here needs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from data.errors import UserError

TOLERANCE = 2e-5
"""Largest difference of an output in fp32, as a share of the largest output: 1e-4 where logits reach 5. Orders of sums
make up to 7e-6 of it (a T5 of random weights, whose scores are not scaled), of a llama or BERT 1e-6."""
OUTPUTS = {"sentence": ("last_hidden_state",), "pretraining": ("prediction_logits", "seq_relationship_logits")}
"""Head -> what transformers calls its outputs; `logits` for the others, and start and end for `span`."""


@dataclass(frozen=True)
class Finding:
    """What transformers made of a directory."""

    difference: float
    """Largest of any output at a real token."""
    largest: float
    """Largest output, for scale."""
    missing: list[str]
    """Parameters of its class that the directory lacks."""
    unexpected: list[str]
    """Parameters of the directory that its class lacks."""
    texts: int
    """Texts that its tokenizer was asked to encode."""
    other_ids: int
    """Of those, how many got other ids."""
    other_layouts: int
    """Of the inputs that its tokenizer was asked to lay out, how many came out otherwise."""
    tokenizer: str | None
    """Why it has no tokenizer."""

    @property
    def allowed(self) -> float:
        """What rounding may make of `difference`."""
        return TOLERANCE * self.largest

    @property
    def is_rounding(self) -> bool:
        """Whether the outputs are the same but for rounding."""
        return self.difference <= self.allowed


def refuse_without_transformers() -> None:
    """Raise UserError where transformers isn't installed."""
    if find_spec("transformers") is None:
        raise UserError(
            "to check an export needs transformers: pip install 'luban[hf]'; or export unchecked, by --no-check"
        )


def compare(
    folder: Path,
    question: Path,
    tensors: Mapping[str, Any],
    texts: Sequence[tuple[str, list[int]]] = (),
    inputs: Sequence[Mapping[str, Any]] = (),
    gguf: str | None = None,
) -> Finding:
    """Ask transformers for the outputs of `folder`.

    Args:
        question: a file to write, which nobody else uses.
        tensors: `input_ids` and whatever else the class takes, by its own names; `real` (B, T or U) bool, where an
            output counts; `output_0` and so on, in fp32.
        texts: texts and their ids without control pieces.
        inputs: whole inputs, as `trainer.hf.layout.examples_of` gives them.
        gguf: the name of a GGUF file in `folder` to load in place of its weights.

    Raises:
        UserError: transformers can't load it.
    """
    from safetensors.torch import save_file

    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        question,
        {"texts": json.dumps(texts), "inputs": json.dumps(inputs)},
    )
    try:
        return Finding(**_ask(folder, question, gguf))
    finally:
        question.unlink()


def _ask(folder: Path, question: Path, gguf: str | None) -> dict[str, Any]:
    """`_answer` of another process."""
    told = subprocess.run(
        [sys.executable, "-P", "-m", "trainer.hf.check", str(folder), str(question), *([gguf] if gguf else [])],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in told.stdout.splitlines() if line.startswith("{")]
    if told.returncode or not lines:
        why = (told.stderr.strip().splitlines() or [f"it ended with {told.returncode}"])[-1]
        raise UserError(f"transformers can't load what was exported: {why}")
    return json.loads(lines[-1])


def _answer(folder: Path | str, question: Path | str, gguf: str | None) -> dict[str, Any]:
    import torch
    import transformers
    from safetensors import safe_open

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with safe_open(question, "pt") as held:
        tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118  (it is no mapping)
        texts, inputs = (json.loads(held.metadata()[name]) for name in ("texts", "inputs"))
    real = tensors.pop("real")
    expected = [
        tensors.pop(f"output_{number}") for number in range(sum(name.startswith("output_") for name in tensors))
    ]
    config = json.loads((Path(folder) / "config.json").read_text())
    name = config["architectures"][0]
    more: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    model, info = getattr(transformers, name).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, **more
    )
    with torch.no_grad():
        said = model.eval()(**tensors)
    if "start_logits" in said:
        outputs = [torch.stack((said.start_logits, said.end_logits), -1)]
    else:
        names = next((names for names in OUTPUTS.values() if names[0] in said), ("logits",))
        outputs = [said[each] for each in names]
    difference = largest = 0.0
    for found, wanted in zip(outputs, expected, strict=True):
        chosen = [each[real] if each.shape[: real.dim()] == real.shape else each for each in (found.float(), wanted)]
        apart = (chosen[0] - chosen[1]).abs().max().item()
        difference = max(difference, apart if apart == apart else float("inf"))
        largest = max(largest, chosen[1].abs().max().item())
    other, otherwise, why = 0, 0, None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
    else:
        for text, ids in texts:
            other += tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) != ids
        otherwise = sum(not _laid_out(tokenizer, each) for each in inputs)
    return {
        "difference": difference, "largest": largest, "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]), "texts": len(texts), "other_ids": other,
        "other_layouts": otherwise, "tokenizer": why,
    }  # fmt: skip


def _laid_out(tokenizer: Any, asked: Mapping[str, Any]) -> bool:
    """Whether an input gets the ids and token types that are asked for."""
    if "messages" in asked:
        found = tokenizer.apply_chat_template(asked["messages"], add_generation_prompt=True, return_dict=False)
        return found == asked["ids"]
    found = tokenizer(*asked["texts"], split_special_tokens=True)
    return found["input_ids"] == asked["ids"] and found.get("token_type_ids", asked.get("types")) == asked.get("types")


if __name__ == "__main__":
    print(json.dumps(_answer(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)))
