"""A run's weights as a Hugging Face directory, which transformers, vLLM, llama.cpp and others load.

Parameter names and shapes are Hugging Face's already, so the weights are copied, one at a time, from the checkpoint's
spans. The directory appears under its name only when transformers has loaded it, in a process of its own, and given the
logits of Luban's model on real rows: a wrong export is removed again.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError
from data.publish import sync
from data.tokenizer.sentencepiece import SentencePieceTokenizer
from data.tokenizer.to_json import unigram_to_json
from data.tokenizer.tokenizer import CONFIG_FILE, JSON_FILE, Tokenizer
from trainer.adapters.adapt import merged
from trainer.checkpoint import Checkpoint
from trainer.feed import read_batch
from trainer.hf import check
from trainer.hf.card import card
from trainer.hf.config import FILE, hugging_face_config, refuse_prefixes
from trainer.hf.layout import Layout, examples_of, layout_of
from trainer.hf.read import Directory
from trainer.hf.write import SHARD_BYTES, Precision, write_weights
from trainer.inputs import Inputs, open_inputs
from trainer.models.build import build
from trainer.models.padding import Padding
from trainer.objectives.base import Objective
from trainer.objectives.choose import objective_of
from trainer.origin import generator_of
from trainer.recipe import Recipe
from trainer.recipe_objective import Objective as Objectives
from trainer.run import Source, read_recipe
from trainer.units import size

ROWS, TOKENS = 4, 512
"""Of the comparison with transformers: rows, and tokens of each at most."""
_TEXT = 2000  # characters of a row's text for the tokenizer's comparison
_NOT_LEARNED = ("pooler.dense.",)
"""Parameters that a class in transformers has beyond the head that was trained."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Export:
    """What is to be written."""

    run: Path
    recipe: Recipe
    found: Checkpoint
    inputs: Inputs
    objective: Objective
    shapes: Mapping[str, tuple[int, ...]]
    """In the order of the model."""
    tensor: Callable[[str], Tensor]
    """A parameter, in fp32."""
    precision: Precision

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.found.state["vocab_size"]

    @property
    def tokenizer(self) -> Tokenizer:
        """That the model was trained with."""
        return self.inputs.tokenizer

    def config(self) -> dict[str, Any]:
        """Its config.json."""
        info = self.inputs.dataset.info
        classes = tuple(info["task"]["classes"]) if self.inputs.dataset.kind == "examples" else ()
        return hugging_face_config(
            self.recipe.model.model_copy(update={"decoder_start_id": self.inputs.start_id(self.recipe.model)}),
            self.vocab_size,
            self.objective.head,
            eos_id=self.tokenizer.eos_id,
            bos_id=_id(self.tokenizer, "<|bos|>"),
            pad_id=_id(self.tokenizer, "<|pad|>"),
            labels=classes if len(classes) == self.objective.head.outputs else (),
        )

    @property
    def layout(self) -> Layout:
        """Of its inputs."""
        return layout_of(self.inputs.task, self.objective.name, self.tokenizer)

    def halved(self, name: str) -> bool:
        """Whether a parameter is written as bf16."""
        return self.precision == "bf16"

    def model(self, halved: Callable[[str], bool]) -> Any:
        """Luban's model with the weights as they are written, in fp32; `halved` tells which went through bf16."""
        model = build(self.recipe.model, self.vocab_size, self.objective.head)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                value = self.tensor(name)
                parameter.copy_(value.bfloat16() if halved(name) else value)
        return model.eval()


def export(
    point: str,
    out: Path,
    precision: Precision = "fp32",
    checked: bool = True,
    gguf: Path | None = None,
    say: Say = print,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the weights of RUN[@STEP] to the directory `out`, and to `gguf` if that is given.

    Args:
        precision: of the files; the comparison is in fp32 in either case.
        checked: compare with transformers; what it shows is said, and stands in the model card.

    Raises:
        UserError: `out` is there already, there are no such weights or no dataset with their tokenizer, transformers
            isn't installed, or it computes something else.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: name a directory that isn't, or remove it")
    if checked:
        check.refuse_without_transformers()
    if gguf is not None:
        from trainer.hf.gguf import refuse_unlike

        refuse_unlike(point, gguf)
    asked = gathered(point, precision)
    with _appearing(out) as draft:
        config = asked.config()
        files = write_weights(draft, asked.shapes, asked.tensor, precision, shard_bytes)
        _write_json(draft / FILE, config)
        _read_again(draft, asked)
        _write_tokenizer(draft, asked)
        if generation := _generation(asked, config):
            _write_json(draft / "generation_config.json", generation)
        verdict, layout = "It was not compared with transformers (--no-check).", asked.layout
        if checked:
            verdict, layout = _compared(draft, asked, say)
        else:
            say("not compared with transformers: --no-check")
        parameters = sum(map(prod, asked.shapes.values()))
        text = card(
            asked.run, asked.recipe, asked.found, asked.inputs.datasets, config, parameters, verdict,
            layout.described(asked.tokenizer),
        )  # fmt: skip
        (draft / "README.md").write_text(text, "utf-8")
        if gguf is not None:
            from trainer.hf.gguf import write_gguf

            write_gguf(asked, config, gguf, draft, checked, say)
    held = sum(path.stat().st_size for path in out.iterdir())
    say(f"{out}: {config['architectures'][0]}, {parameters:,} parameters in {len(files)} file(s), {size(held)}")


def gathered(point: str, precision: Precision = "fp32") -> Export:
    """What RUN[@STEP] has to export; no weight is read yet, unless an adapter has to be merged into them.

    Raises:
        UserError: it is no such point, its dataset is gone or of another tokenizer, or it holds another model than its
            recipe says.
    """
    source = Source.parse(point)
    found, recipe = source.checkpoint(), read_recipe(source.run)
    if recipe.adapter.kind == "prompt":
        raise UserError(f"{point} learned a prompt, which no model of transformers has: export its adapter alone")
    refuse_prefixes(point, recipe.model)
    inputs = open_inputs(recipe)
    if inputs.tokenizer.fingerprint != found.state["tokenizer"]:
        raise UserError(f"{recipe.data.label} was made with another tokenizer than {point}: bring the old one back")
    objective = objective_of(recipe, inputs.dataset)
    held, tensor = found.shapes, found.weight
    if objective.name == "adversarial":  # its generator is a model like any other
        recipe = recipe.model_copy(update={"objective": Objectives()})
        objective, (held, tensor) = objective_of(recipe, inputs.dataset), generator_of(held, tensor)
    if recipe.adapter.kind != "none":
        whole = merged(recipe, found.weights())
        held, tensor = {name: tuple(each.shape) for name, each in whole.items()}, whole.__getitem__
    with torch.device("meta"):
        model = build(recipe.model, found.state["vocab_size"], objective.head)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    odd = sorted(name for name in {*shapes, *held} if shapes.get(name) != held.get(name))
    if odd:
        raise UserError(f"{source.run}/recipe.yaml describes another model than {found.name} holds: {odd[0]} differs")
    return Export(source.run, recipe, found, inputs, objective, shapes, tensor, precision)


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when everything has gone well, and is removed when not."""
    draft = out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        draft.mkdir(parents=True)
        yield draft
        for path in draft.iterdir():
            sync(path)
        sync(draft)
        if out.is_dir():
            out.rmdir()
        draft.rename(out)
        sync(out.parent)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _read_again(folder: Path, asked: Export) -> None:
    """Raise UserError unless the files hold what the checkpoint does: a small model's outputs hide a wrong weight."""
    written = Directory(folder)
    for name in asked.shapes:
        wanted = asked.tensor(name)
        if not written.weight(name).equal(wanted.bfloat16().float() if asked.halved(name) else wanted):
            raise UserError(f"the export is refused: {name} doesn't read back as the checkpoint has it")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")


def _write_tokenizer(folder: Path, asked: Export, laid_out: bool = True) -> None:
    """Its files.

    Args:
        laid_out: it lays inputs out as the run's rows are.
    """
    files, layout = asked.tokenizer.files(), asked.layout if laid_out else Layout()
    if JSON_FILE not in files and isinstance(asked.tokenizer, SentencePieceTokenizer):
        equal = unigram_to_json(asked.tokenizer.content)
        files |= {} if equal is None else {JSON_FILE: equal.encode()}  # its ids are compared before all this appears
    for name, content in files.items():
        if name == CONFIG_FILE:
            said = json.loads(content) | {"model_max_length": asked.recipe.model.context}
            typed = asked.recipe.model.family == "bert" and asked.recipe.model.type_vocab_size > 1
            said["model_input_names"] = ["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"]
            if layout.chat_template:
                said["chat_template"] = layout.chat_template
            content = (json.dumps(said, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()
        elif name == JSON_FILE and layout.single:
            said = json.loads(content)
            said["post_processor"] = layout.post_processor(asked.tokenizer, said.get("post_processor"))
            content = json.dumps(said, ensure_ascii=False).encode()
        (folder / name).write_bytes(content)


def _generation(asked: Export, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """generation_config.json of a model that writes text."""
    if asked.objective.head.kind != "lm" or not (
        asked.recipe.model.is_decoder or asked.recipe.model.is_encoder_decoder
    ):
        return None
    ends = list(dict.fromkeys(asked.inputs.ends))
    names = ("bos_token_id", "pad_token_id", "decoder_start_token_id")
    return {"eos_token_id": ends if len(ends) > 1 else ends[0]} | {
        name: config[name] for name in names if config.get(name) is not None
    }


def _id(tokenizer: Tokenizer, piece: str) -> int | None:
    try:
        return tokenizer.piece_id(piece)
    except UserError:
        return None


def _compared(folder: Path, asked: Export, say: Say) -> tuple[str, Layout]:
    """Compare with transformers; what it shows, for the card, and the layout that its tokenizer has.

    Raises:
        UserError: it computes something else.
    """
    tensors, where = question(asked, asked.halved)
    texts = _texts(asked, tensors["input_ids"]) if (folder / JSON_FILE).exists() else []
    inputs = examples_of(
        asked.layout, asked.inputs.task, asked.objective.name, asked.tokenizer, [text for text, _ in texts]
    )
    found = check.compare(folder, folder / ".question.safetensors", tensors, texts, inputs)
    rows, tokens = tensors["input_ids"].shape
    said = (
        f"Compared with transformers on {rows} {where} of {tokens} tokens, the largest difference of an output is "
        f"{found.difference:.2g} (outputs up to {found.largest:.3g}, fp32)."
    )
    absent = [name for name in found.missing if not any(part in name for part in _NOT_LEARNED)]
    if absent or found.unexpected:
        odd = f"misses {absent[0]}" if absent else f"has no place for {found.unexpected[0]}"
        raise UserError(f"the export is refused: transformers {odd}")
    if not found.is_rounding:
        raise UserError(
            f"the export is refused: {said[0].lower()}{said[1:]} At most {found.allowed:.2g} are a rounding; nothing "
            "was written"
        )
    say(said)
    if found.other_ids and JSON_FILE not in asked.tokenizer.files():
        (folder / JSON_FILE).unlink()
        say(f"transformers has no tokenizer for it: a {JSON_FILE} gave other ids for {found.other_ids} texts")
        return f"{said} Its tokenizer is not in a form that transformers loads.", Layout()
    if found.other_ids:
        raise UserError(
            f"the export is refused: transformers' tokenizer gives other ids for {found.other_ids} of {found.texts} "
            "texts of those rows"
        )
    if found.tokenizer:
        say(f"transformers has no tokenizer here ({found.tokenizer}): load that beside the weights by its own library")
        return f"{said} Its tokenizer is not in a form that transformers loads.", Layout()
    say(f"its tokenizer gives the same ids for {found.texts} texts")
    if found.other_layouts:
        _write_tokenizer(folder, asked, laid_out=False)
        why = f"of {len(inputs)} inputs with their control pieces {found.other_layouts} got other ids"
        say(f"its tokenizer is not told the run's template: {why}")
        return f"{said} Its tokenizer doesn't know the run's template: {why}.", Layout()
    if inputs:
        say(f"and lays {len(inputs)} inputs out as the run's rows are")
    return said, asked.layout


def question(asked: Export, halved: Callable[[str], bool]) -> tuple[dict[str, Tensor], str]:
    """What to ask transformers, with the answers of Luban's model (`check.compare`), and which rows that are.

    Args:
        halved: which parameters the file holds as bf16.
    """
    if asked.inputs.fixed:
        reader, rows = next(iter(asked.inputs.fixed.values()))
        where = "validation rows"
    else:
        reader, rows, where = asked.inputs.reader(), ROWS, "training rows (there is no validation row)"
    unit = asked.recipe.objective.together
    count = -(-min(ROWS, rows) // unit) * unit  # where rows are each other's negatives, a whole group
    _, batch = read_batch(reader, asked.objective, np.arange(count), torch.device("cpu"))
    ids = batch.input_ids[:, :TOKENS]
    tensors = {"input_ids": ids}
    real, padding = torch.ones_like(ids, dtype=torch.bool), None
    if batch.padding is not None:
        real = batch.padding.real[:, :TOKENS]
        padding = Padding.of(real.numpy(), real.device)
        tensors["attention_mask"] = real.long()
    model, family, head = asked.model(halved), asked.recipe.model, asked.objective.head.kind
    with torch.no_grad():
        if family.is_encoder_decoder:
            assert batch.decoder_input_ids is not None
            written = batch.decoder_input_ids[:, :TOKENS]
            tensors["decoder_input_ids"], real = written, torch.ones_like(written, dtype=torch.bool)
            outputs = model(ids, written, padding=padding)
        elif family.is_decoder:
            at = {"at": _last(ids, _id(asked.tokenizer, "<|pad|>"))} if head == "classes" else {}
            outputs = model(ids, **at)
        else:
            if batch.token_types is not None:
                tensors["token_type_ids"] = batch.token_types[:, :TOKENS]
            outputs = model(ids, padding=padding, token_types=tensors.get("token_type_ids"))
    for number, output in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)):
        tensors[f"output_{number}"] = output.float()
    return tensors | {"real": real}, where


def _last(ids: Tensor, pad_id: int | None) -> Tensor:
    """(B,) the last place that isn't padding, as transformers finds it."""
    places = torch.arange(ids.size(1)).expand_as(ids)
    return (places * (ids != pad_id)).argmax(-1)


def _texts(asked: Export, ids: Tensor) -> list[tuple[str, list[int]]]:
    """Texts of the compared rows and their ids, where transformers can be asked: it finds control pieces in text."""
    tokenizer = asked.tokenizer
    control = [tokenizer.pieces[number] for number in np.flatnonzero(tokenizer.is_control) if tokenizer.pieces[number]]
    texts = [tokenizer.decode(row.tolist())[:_TEXT] for row in ids]
    plain = [text for text in texts if text and "\u2581" not in text and not any(each in text for each in control)]
    return [(text, tokenizer.encode(text).tolist()) for text in plain]
