"""The dataset recipe: where the documents come from, what is dropped, how the rest becomes shards.

Everything but `workers` and `pack` decides the bytes of the shards: two builds with equal recipes and equal input are
equal, file by file. Recipes that work as they stand are in `data/recipes/`.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from data.clean.quota import Quota
from data.clean.rules import Clean
from data.corpus.source import TABLES, Source
from data.settings import Fixed, Free, Section
from data.tasks.task import Task

RECIPES = Path(__file__).with_name("recipes")
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def _bytes(value: Any) -> Any:
    """A number of bytes, also as `500MB` or `1.5 GB`."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError("it is a number of bytes, such as 500MB or 2GB")
    return round(float(match[1]) * _UNITS[match[2].upper()])


Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1_000_000)]


class Dedup(Section):
    """Which documents are dropped for being copies. Of a set of copies the first stays: the one whose source
    stands first in the recipe, there the first in the order of ids."""

    exact: Fixed[bool] = True
    """Drop documents whose cleaned text is equal to another's (xxh3, 128 bits)."""
    near: Fixed[bool] = True
    """Drop documents whose MinHash signature agrees with another's in a whole band."""
    bands: Fixed[Annotated[int, Field(ge=1, le=64)]] = 16
    """Bands of a signature. Two documents of similarity s share one with probability 1 - (1 - s^rows)^bands:
    16 by 8 finds .95 of the pairs at .8 and .06 at .5."""
    rows: Fixed[Annotated[int, Field(ge=1, le=64)]] = 8
    """Values in a band."""
    ngram: Fixed[Annotated[int, Field(ge=1, le=32)]] = 5
    """Words in a shingle; a Chinese, Japanese or Korean character counts as a word."""


class Decontaminate(Section):
    """Which documents are dropped for holding text of evaluation sets; each drop is counted by set: `in_NAME`."""

    sets: Fixed[tuple[Source, ...]] = ()
    """Evaluation sets, told as sources are: name, kind, path, field of the text."""
    ngram: Fixed[Annotated[int, Field(ge=4, le=64)]] = 13
    """Words in a run that a document and an evaluation text share; a Chinese, Japanese or Korean character counts as
    a word."""
    min_words: Fixed[Annotated[int, Field(ge=1)]] = 8
    """Evaluation texts of fewer than `ngram` words, but of at least these, are looked for whole; shorter ones are not
    looked for, and counted."""
    overlap: Fixed[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    """Drop a document if more than this share of its words lie in shared runs; 0: if any do."""

    @field_validator("sets")
    @classmethod
    def _told_apart(cls, sets: tuple[Source, ...]) -> tuple[Source, ...]:
        labels = [each.label for each in sets]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"two evaluation sets are called {twice[0]!r}; set `name` on one")
        return sets


class Split(Section):
    """How documents are dealt to splits: by a hash of dataset name, seed and the source document's id."""

    valid: Fixed[Share] = 0.01
    """Share of the source documents in `valid`, looked at during training."""
    heldout: Fixed[Share] = 0.0
    """Share of the source documents in `heldout`, kept for another use, such as fine-tuning on unseen text."""

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> "Split":
        if self.valid + self.heldout >= 1:
            raise ValueError(f"valid + heldout is {self.valid + self.heldout:g}: nothing would be left to train on")
        return self


class TokenizerTraining(Section):
    """The tokenizer: trained on the train split, or taken from elsewhere."""

    vocab_size: Fixed[Annotated[int, Field(ge=512, le=1_000_000)]] = 32768
    """Pieces, control and byte pieces included; fewer if the text has no more to merge."""
    sample_bytes: Fixed[Annotated[int, Field(ge=1)]] = 100_000_000
    """Train on at most so many bytes of documents, picked by hash, each source by its share; a long document gives its
    beginning. Training takes some 15 times that in memory."""
    character_coverage: Fixed[Annotated[float, Field(gt=0, le=1)]] = 0.9995
    """Share of the characters seen that get a piece of their own; the others are written as bytes."""
    reuse: Fixed[Path | None] = None
    """A tokenizer that is taken as it is: a dataset's folder, a Hugging Face model's, a SentencePiece model or a
    tokenizer.json; the settings above don't matter then. A model that goes on from another needs that one's. One that
    changes text is taken too; the build says how many of a sample of documents don't come back whole."""
    special: Fixed[dict[str, str]] = Field(default_factory=dict)
    """With reuse: which of its pieces stand for eos, pad, bos, mask, completion and whatever else a template asks for,
    where the files beside it don't say, such as {eos: "[SEP]"}. No text yields these pieces."""

    @model_validator(mode="after")
    def _roles_of_what_is_taken(self) -> "TokenizerTraining":
        if self.special and self.reuse is None:
            raise ValueError("special means something only with reuse: a trained tokenizer has all its control pieces")
        return self


class DatasetRecipe(Section):
    """A whole dataset."""

    name: Fixed[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]] = "stdlib"
    """Its folder under `datasets/`. Together with the seed it also keys split and shuffle."""
    kind: Fixed[Literal["text", "examples"]] = "text"
    """text: documents to pretrain on; examples: prompts and completions to fine-tune on."""
    seed: Fixed[Count] = 0
    """Another seed deals documents to splits anew and shuffles them anew."""
    sources: Fixed[tuple[Source, ...]] = (Source(kind="stdlib", licence="PSF-2.0"),)
    """Where the documents come from."""
    allowed_licences: Fixed[tuple[str, ...]] = ()
    """Refuse a source whose `licence` is none of these, `unknown` included; none: any will do."""
    clean: Clean = Clean()
    """Rules that change text, and that drop documents for what they are."""
    clean_sources: Fixed[dict[str, Clean]] = Field(default={})
    """Rules for the documents of single sources, by name, such as {wiki: {preset: web}, kernel: {preset: code}}, in
    place of `clean`."""
    languages: Fixed[dict[str, Quota | None] | None] = None
    """Which languages stay, and how much of each, such as {en: null, zh: {max_share: 0.3}}: others are dropped
    (`other_language`), and what is over a quota by hash (`over_quota`). Needs clean.language. null: all of all."""
    decontaminate: Decontaminate = Decontaminate()
    """Removal of what evaluation sets hold."""
    dedup: Dedup = Dedup()
    """Removal of copies."""
    split: Split = Split()
    """Shares of the splits."""
    tokenizer: TokenizerTraining = TokenizerTraining()
    """The tokenizer."""
    task: Task = Task()
    """Kind examples only: what an example is."""
    shard_tokens: Fixed[Annotated[int, Field(ge=1024)]] = 4_194_304
    """Tokens in a shard, about: a split has total // shard_tokens shards of even size, at least one."""
    pack: Free[tuple[Annotated[int, Field(ge=1)], ...]] = ()
    """Contexts, in tokens, to make packing plans for, which a run with `data.packing=best_fit` needs; documents are cut
    only where longer than a row of context + 1. More can be made later: `luban data pack`."""
    workers: Free[Count] = 0
    """Processes; 0: one a core. Changes nothing in the result."""
    memory: Free[Bytes] = 2_000_000_000
    """Bytes to sort in (500MB, 2GB): hashes, keys of copies and the order of documents that don't fit wait on disk.
    Cleaning and tokenizing take some 200 MB a process besides, training a tokenizer what `sample_bytes` says. Changes
    nothing in the result."""

    @field_validator("sources")
    @classmethod
    def _told_apart(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        if not sources:
            raise ValueError("at least one source is needed")
        labels = [source.label for source in sources if source.kind != "dataset"]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"two sources are called {twice[0]!r}, so their documents' ids clash; set `name` on one")
        return sources

    def rules_for(self, source: str) -> Clean:
        """The rules for documents of the source of that name."""
        return self.clean_sources.get(source, self.clean)

    @model_validator(mode="after")
    def _cleaned_sources_are_there(self) -> "DatasetRecipe":
        names = {source.label for source in self.sources}
        unknown = sorted(set(self.clean_sources) - names)
        if unknown and all(source.kind != "dataset" for source in self.sources):
            raise ValueError(
                f"clean_sources has rules for {unknown[0]!r}, but the sources are {', '.join(sorted(names))}"
            )
        return self

    @model_validator(mode="after")
    def _licences_are_allowed(self) -> "DatasetRecipe":
        allowed = self.allowed_licences
        strange = [source for source in self.sources if allowed and source.licence not in allowed]
        if strange:
            said = ", ".join(f"{source.label} is {source.licence!r}" for source in strange)
            raise ValueError(f"allowed_licences are {', '.join(allowed)}, but source {said}")
        return self

    @model_validator(mode="after")
    def _languages_are_known(self) -> "DatasetRecipe":
        if self.languages is None:
            return self
        if any(rules.language is None for rules in (self.clean, *self.clean_sources.values())):
            raise ValueError("languages are chosen by name, so clean.language must be identify, or name one")
        shares = [quota.max_share if quota and quota.max_share else 1.0 for quota in self.languages.values()]
        if sum(shares) < 1 - 1e-9:
            raise ValueError(
                f"the languages' max_share sum to {sum(shares):g}, so no text could be within them all: they must sum "
                "to 1 at least, or one language have none"
            )
        return self

    @model_validator(mode="after")
    def _task_fits_sources(self) -> "DatasetRecipe":
        for number, source in enumerate(self.sources):
            if self.kind == "text":
                if source.kind in ("lines", "squad"):
                    raise ValueError(f"sources.{number}: a {source.kind} source is for a task: set kind: examples")
                if source.columns:
                    raise ValueError(
                        f"sources.{number} has columns for a task: it needs kind: examples (a dataset of text has one "
                        "column, text_field)"
                    )
                continue
            reads_text = self.task.kind == "docstring"
            if (self.task.kind == "qa") != (source.kind == "squad"):
                raise ValueError(f"task qa reads sources of kind squad and no other task does: see sources.{number}")
            if not reads_text and source.kind not in (*TABLES, "lines", "squad"):
                raise ValueError(
                    f"task {self.task.kind} reads rows: sources.{number} must be of kind {', '.join(TABLES)} or lines, "
                    "with its columns"
                )
            self.task.check_columns(source.columns, f"sources.{number}")
        for name in (
            ("pii", "mojibake", "remove_controls") if self.task.kind == "qa" and self.kind == "examples" else ()
        ):
            if any(getattr(rules, name) for rules in (self.clean, *self.clean_sources.values())):
                raise ValueError(
                    f"clean.{name} would move the answers of task qa, which are places in a text, so it isn't done "
                    "there: set it to false, or clean the file beforehand"
                )
        return self
