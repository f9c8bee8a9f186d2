"""The recipe's section `data`: which datasets a run reads, how they are mixed, and how remote ones are fetched."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from data.remote.patience import Patience
from data.remote.remote import Access
from data.remote.shard_cache import default_cache
from data.settings import Fixed, Free, Section


class Source(Section):
    """One of several datasets."""

    dataset: Free[str]
    """As `data.dataset`."""
    max_epochs: Fixed[float | None] = Field(default=None, gt=0)
    """How often it is read at most, in epochs over the whole run; the others then share its weight. null: no limit."""


def _above_zero(weights: dict[str, float]) -> dict[str, float]:
    if not weights:
        raise ValueError("a stage needs a source: give each its weight, such as {web: 0.7, code: 0.3}")
    if odd := [f"{name} {weight:g}" for name, weight in weights.items() if not weight > 0]:
        raise ValueError(f"a weight must be above 0, and {', '.join(odd)} is not: leave out what it shall not read")
    return weights


class Stage(Section):
    """A stretch of the run with a mixture of its own."""

    start: Fixed[int] = Field(default=0, ge=0)
    """Position at which it begins, in rows: updates before it times train.batch_rows. The first stage's is 0."""
    weights: Annotated[Fixed[dict[str, float]], AfterValidator(_above_zero)]
    """Share of the rows of each source, as numbers above 0 of which only the proportions matter."""
    context: Fixed[int | None] = Field(default=None, ge=8)
    """Length of its rows, in tokens, at most model.context. null: that."""
    window: Fixed[int | None] = Field(default=None, ge=1)
    """Shards of a source that are shuffled together, in shards. null: data.window."""


class Data(Section):
    """What is read, and in which order."""

    dataset: Free[str | None] = "datasets/stdlib"
    """Folder of a built dataset (`luban data build`), relative to the working directory or absolute; or where its files
    are to be streamed from: a URL (http, https, s3, gs and all else that fsspec knows) or `pipe:COMMAND with {file}`,
    such as `pipe:ssh host cat /data/web/{file}`. Secrets in a URL are written ${NAME}, after variables of the
    environment. It may move; its content may not: the run remembers the digest of the shards. null: data.sources says
    what is read."""
    sources: Fixed[dict[str, Source]] = Field(default={})
    """Several datasets instead of one, by name, such as {web: {dataset: datasets/web}, code: {dataset: datasets/code,
    max_epochs: 4}}. They share a tokenizer (tokenizer.reuse in their recipes). A run may go on with more of them."""
    stages: Fixed[tuple[Stage, ...]] = ()
    """How the sources are mixed, stage after stage, such as [{weights: {web: 0.9, code: 0.1}}, {start: 320000, weights:
    {code: 1}}]. A run may go on with stages appended, and with others changed that it has not come to. None: the only
    source. In another row length a source goes on at its next window of shards."""
    lanes: Fixed[int] = Field(default=1, ge=1, lt=2**20)
    """Into how many lanes the shards are dealt; row p is of lane p modulo this. Nodes that divide it read only the
    shards of their own lanes, if it divides train.batch_rows. Each lane needs a shard of each source."""
    packing: Fixed[Literal["chop", "best_fit"]] = "chop"
    """How documents become rows. chop: text one document after the other, cut every context tokens, and an example a
    row; best_fit: by a plan that cuts only documents longer than a row, made by `luban data pack DATASET --context N`
    or the dataset recipe's `pack`."""
    window: Fixed[int] = Field(default=16, ge=1)
    """Shards shuffled together, in shards. A streaming reader holds one window; a larger one shuffles better."""
    prefetch: Free[int] = Field(default=2, ge=1, le=64)
    """Steps whose rows the reading thread keeps ready, in steps."""
    cache: Free[str | None] = None
    """Folder where each node keeps the shards of remote datasets, shared by its ranks and runs: a local disk. null:
    cache under LUBAN_HOME, or else luban in the user's cache folder."""
    cache_gb: Free[float] = Field(default=50.0, gt=0)
    """Most that the shards in the cache may take, in gigabytes; at least the windows that a node reads at once. What is
    longest unused goes first."""
    streams: Free[int] = Field(default=4, ge=1, le=64)
    """Shards that a rank downloads at a time."""
    timeout_s: Free[float] = Field(default=60.0, gt=0)
    """A server that sends nothing for so long counts as dead, in seconds; the request is tried again."""
    tries: Free[int] = Field(default=6, ge=1)
    """How often a request is tried before the run ends with an error, waiting 0.5 s, 1 s, 2 s ... between."""

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("sources") and "dataset" not in given:
            return {**given, "dataset": None}
        return given

    @model_validator(mode="after")
    def _known_sources(self) -> Self:
        if bool(self.sources) == (self.dataset is not None):
            raise ValueError(
                f"dataset {self.dataset} and sources {', '.join(self.sources)} both say what is read: name it among "
                "the sources, and set data.dataset=null"
                if self.sources
                else "nothing to read: set data.dataset, or data.sources"
            )
        if len(self.sources) > 1 and not self.stages:
            weights = ", ".join(f"{name}: 1" for name in self.sources)
            raise ValueError(f"several sources need weights, such as data.stages='[{{weights: {{{weights}}}}}]'")
        known = list(self.places)
        for number, stage in enumerate(self.stages):
            for name in stage.weights:
                if name not in known:
                    near = difflib.get_close_matches(name, known, 1)
                    mend = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(known)}"
                    raise ValueError(f"stages.{number}.weights names {name}, and data.sources doesn't. {mend}")
        unread = [name for name in known if self.stages and not any(name in stage.weights for stage in self.stages)]
        if unread:
            raise ValueError(f"source {', '.join(unread)} is in no stage's weights: give it one, or leave it out")
        starts = [stage.start for stage in self.stages]
        if starts and (starts[0] or starts != sorted(set(starts))):
            raise ValueError(f"stages start at {starts}: the first must start at 0, and each later than the one before")
        return self

    @property
    def places(self) -> dict[str, str]:
        """Where each source's dataset is, by the source's name; a dataset alone is called data."""
        if self.dataset is not None:
            return {"data": self.dataset}
        return {name: source.dataset for name, source in self.sources.items()}

    @property
    def label(self) -> str:
        """The datasets in a few words, for messages."""
        return ", ".join(self.places.values())

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages; of a single source without any, the one."""
        return self.stages or (Stage(weights=dict.fromkeys(self.places, 1.0)),)

    @property
    def access(self) -> Access:
        """How remote datasets are fetched and kept."""
        cache = Path(self.cache).expanduser() if self.cache else default_cache()
        return Access(cache, int(self.cache_gb * 1e9), self.streams, Patience(self.tries, self.timeout_s))

    def moved(self, places: Mapping[str, str]) -> "Data":
        """With its datasets at other `places`, by source."""
        if self.dataset is not None:
            return self.model_copy(update={"dataset": places["data"]})
        moved = {name: each.model_copy(update={"dataset": places[name]}) for name, each in self.sources.items()}
        return self.model_copy(update={"sources": moved})
