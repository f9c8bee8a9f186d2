"""`luban explain`: what a model looks at in one input, and what its answer owes to each token of it.

Attributions are integrated gradients (`attributions.py`) of the figure that `readings.py` asks. Their baseline has
<|mask|> (an encoder's) or <|eos|> for every token: pieces that training has met in any place, and which say nothing of
their own; embeddings of zeros it has never met, and near them a norm's gradient explodes. Control pieces stay as they
are, so that they get none.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError
from data.tokenizer.tokenizer import Tokenizer
from trainer.adapters.prompt import embedding
from trainer.attributions import embedded, integrated_gradients
from trainer.explanation import About, Explanation
from trainer.generation.passes import writer
from trainer.models.attention_maps import attention_maps
from trainer.readings import Reading, read_as_trained
from trainer.run import Source
from trainer.scores import Loaded, load_model
from trainer.units import printable

SHOWN = 10
"""Tokens that the terminal shows; the report shows all."""


def explain(loaded: Loaded, texts: Sequence[str], target: str | None = None, layer: int | None = None) -> Explanation:
    """Attention and attributions of one input.

    Args:
        texts: one, or the two of a pair, or a question and its context.
        target: a class's name, or a text whose log-probability is explained; None: what the model says itself.
        layer: whose heads the report shows one by one, from 1; None: the last.

    Raises:
        UserError: as `read_as_trained`, and where there is no such layer.
    """
    loaded = replace(loaded, model=writer(loaded.model))
    config, tokenizer = loaded.recipe.model, loaded.inputs.tokenizer
    layers = config.decoder_layers if config.is_encoder_decoder else config.num_hidden_layers
    if layer is not None and not 1 <= layer <= layers:
        raise UserError(f"--layer {layer}: the model has layers 1 to {layers}")
    reading = read_as_trained(loaded, texts, target)
    ids = torch.tensor([reading.ids], device=loaded.device)
    maps = attention_maps(loaded.model, lambda: reading.run(ids))
    stand_in = _stand_in(tokenizer, encoder=not (config.is_decoder or config.is_encoder_decoder))
    found, full, empty, points = np.zeros(0), 0.0, 0.0, 0
    if reading.figure:
        found, full, empty, points = _attributed(loaded, reading, ids, stand_in)
    about = About(
        loaded.step, config.family, loaded.objective.name, tuple(texts), reading.figure, reading.target, full, empty,
        tokenizer.pieces[stand_in], points, _shown(tokenizer, reading.ids), _shown(tokenizer, reading.decoder_ids),
        reading.given, (layer or layers) - 1,
    )  # fmt: skip
    return Explanation(about, {kind: held.numpy() for kind, held in maps.items()}, found.astype(np.float32))


def _attributed(loaded: Loaded, reading: Reading, ids: Tensor, stand_in: int) -> tuple[np.ndarray, float, float, int]:
    """As `integrated_gradients`, of the reading's figure."""
    control = torch.from_numpy(np.asarray(loaded.inputs.tokenizer.is_control))
    place = torch.arange(ids.size(1), device=ids.device)
    known = ids < len(control)  # beyond them: virtual tokens, and a vocabulary's padding
    kept = (place >= reading.given) | ~known | control.to(ids.device)[ids.clamp(max=len(control) - 1)]
    table: Any = embedding(loaded.model)[1]
    with torch.no_grad():
        (inputs,), (baseline,) = table(ids), table(torch.where(kept, ids, stand_in))

    def value(vectors: Tensor) -> Tensor:
        with embedded(table, vectors):
            return reading.value(reading.run(ids.expand(len(vectors), -1)))

    return integrated_gradients(value, inputs, baseline)


def _stand_in(tokenizer: Tokenizer, encoder: bool) -> int:
    """The token that stands for nothing in particular."""
    if encoder:
        try:
            return tokenizer.piece_id("<|mask|>")
        except UserError:
            pass
    return tokenizer.eos_id


def _shown(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token as a person can tell it from others: spaces as the field writes them, line ends as arrows."""
    names = []
    for number in ids:
        if number >= len(tokenizer.pieces):
            names.append(f"[{number}]")  # a virtual token, or a vocabulary's padding
            continue
        piece, spelling = tokenizer.pieces[number], tokenizer.spellings[number]
        if tokenizer.is_control[number] or tokenizer.losses:
            names.append(piece)  # with losses, the piece says more than its spelling: ##ing
            continue
        try:
            names.append(spelling.decode().replace(" ", "▁").replace("\n", "↵").replace("\t", "⇥") or piece)
        except UnicodeDecodeError:
            names.append(piece)  # a part of a character
    return tuple(names)


def explain_run(point: str, text: str, second: str | None, target: str | None, layer: int | None) -> str:
    """What `luban explain` prints; what it found is left in the run's folder, where `luban report` finds it.

    Raises:
        UserError: as `explain` and `load_model`, or the folder can't be written to.
    """
    texts = [text] if second is None else [text, second]
    if any("\udc80" <= character <= "\udcff" for each in (*texts, target or "") for character in each):
        raise UserError("a text is not valid UTF-8")
    run = Source.parse(point).run
    found = explain(load_model(point), texts, target, layer)
    path = found.write(run)
    return printable(
        "\n".join(
            [f"{point} at step {found.about.step}", *_lines(found), f"in {path}: luban report {run.name} draws it"]
        )
    )


def _lines(found: Explanation) -> list[str]:
    """The figure and the tokens that it owes most to."""
    about = found.about
    lines = [f"  {len(about.tokens)} tokens, attention of {', '.join(found.attention)}"]
    if not about.figure:
        return [*lines, f"  a model of {about.objective} gives nothing to attribute: attention alone"]
    what = f" {about.target!r}" if about.target else ""
    lines.append(
        f"  {about.figure}{what}: {about.value:.4f}; with {about.baseline} for every token {about.baseline_value:.4f}"
    )
    order = np.argsort(-np.abs(found.attributions[: about.given]), kind="stable")[:SHOWN]
    width = max(len(about.tokens[place]) for place in order)
    lines += [f"  {place + 1:4} {about.tokens[place]:{width}} {found.attributions[place]:+10.4f}" for place in order]
    lines.append(f"  all {about.given} add up to {found.total:+.4f}, of a difference of {found.wanted:+.4f}")
    return [*lines, f"  {found.warning}"] if found.warning else lines
