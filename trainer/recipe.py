"""The whole configuration of a run, and its reference manual.

A recipe is YAML plus `key=value`; `luban pretrain RECIPE --show` prints it resolved, each setting under its text.
Every setting is marked with what may become of it once the run has begun: [fixed] never, [branch] only in a new run
that starts from this one (`--from`), [free] at any start. Names of the model's settings are Hugging Face's.
"""

import difflib
from collections.abc import Mapping
from math import lcm
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from data.patience import Patience
from data.remote import Access
from data.settings import Branch, Fixed, Free, Section
from data.shard_cache import default_cache

RECIPES = Path(__file__).with_name("recipes")
"""Recipes that come with Luban."""


Decay = Annotated[float, Field(ge=0, lt=1)]


def _multiple_of_8(value: int) -> int:
    if value % 8:
        raise ValueError("must be a multiple of 8")
    return value


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


class Model(Section):
    """A Llama-style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    vocab_size: Fixed[int | None] = Field(default=None, ge=2)
    """Rows of the embedding, in tokens. null: the tokenizer's pieces, padded to a multiple of 128."""
    context: Fixed[int] = Field(default=256, ge=8)
    """Longest sequence, in tokens; a pretraining row holds one token more, so that each token is a label once."""
    hidden_size: Annotated[Fixed[int], AfterValidator(_multiple_of_8)] = Field(default=192, ge=8)
    """Width of the residual stream, in features."""
    intermediate_size: Fixed[int | None] = Field(default=None, ge=8)
    """Width of the SwiGLU layer, in features. null: 8/3 of hidden_size, rounded up to a multiple of 64."""
    num_hidden_layers: Fixed[int] = Field(default=6, ge=1)
    """Decoder blocks."""
    num_attention_heads: Fixed[int] = Field(default=6, ge=1)
    """Query heads; hidden_size must divide by it, and each head's width must be even."""
    num_key_value_heads: Fixed[int] = Field(default=2, ge=1)
    """Key and value heads (grouped-query attention); must divide num_attention_heads."""
    rope_theta: Fixed[float] = Field(default=10000.0, gt=0)
    """Base of the rotary position frequencies."""
    rms_norm_eps: Fixed[float] = Field(default=1e-5, gt=0)
    """Added to the mean square in RMSNorm."""
    tie_word_embeddings: Fixed[bool] = True
    """Use the embedding as the output projection too."""
    attention: Fixed[Literal["document", "full"]] = "document"
    """document: a token sees only its own document; full: the whole row before it."""
    residual_dropout: Fixed[float] = Field(default=0.0, ge=0, lt=1)
    """Probability of dropping a block's output before it joins the residual stream, in training."""
    initializer_range: Fixed[float] = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights; the projections into the residual stream get 1/sqrt(2 layers)."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide by num_attention_heads {self.num_attention_heads}"
            )
        if self.head_size % 2:
            raise ValueError(f"a head's width, hidden_size / num_attention_heads = {self.head_size}, must be even")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} does not divide by "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        return self

    @property
    def head_size(self) -> int:
        """Width of one attention head, in features."""
        return self.hidden_size // self.num_attention_heads

    @property
    def mlp_size(self) -> int:
        """`intermediate_size`, or its default, in features."""
        return self.intermediate_size or -(-self.hidden_size * 8 // 3 // 64) * 64


class Train(Section):
    """How long, and how much at once."""

    steps: Branch[int] = Field(default=600, ge=1)
    """Optimizer updates of the whole run."""
    batch_rows: Branch[int] = Field(default=32, ge=1)
    """Rows of one update, over all ranks and accumulation, in rows."""
    trainable: Fixed[tuple[str, ...]] = ("*",)
    """Parameters that learn, as shell patterns over their names, such as `model.layers.5.*`; the rest is frozen."""
    patience: Branch[int] = Field(default=0, ge=0)
    """Stop after this many evaluations in a row without a better validation loss; 0: never."""


class Optimizer(Section):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), torch's own."""

    lr: Branch[float] = Field(default=2e-3, gt=0)
    """Peak learning rate."""
    betas: Branch[tuple[Decay, Decay]] = (0.9, 0.95)
    """Decay of the first and second moments."""
    eps: Branch[float] = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: Branch[float] = Field(default=0.1, ge=0)
    """Decoupled decay of matrices; norms, biases and embeddings are not decayed."""
    clip: Branch[float | None] = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient; larger ones are scaled down to it. null: no clipping."""


class Schedule(Section):
    """The learning rate as a pure function of the step."""

    kind: Branch[Literal["cosine", "linear", "wsd", "constant"]] = "cosine"
    """Shape after the warm-up; wsd stays at the peak and decays linearly in the last decay_steps."""
    warmup_steps: Branch[int] = Field(default=40, ge=0)
    """Linear rise from peak/warmup_steps at the first update to the peak, in steps."""
    decay_steps: Branch[int] = Field(default=100, ge=0)
    """Length of the final decay of wsd, in steps; unused by the other kinds."""
    final_ratio: Branch[float] = Field(default=0.1, ge=0, le=1)
    """The last update's learning rate as a fraction of the peak; unused by constant."""


class Engine(Section):
    """How the training state is sharded and computed."""

    zero_stage: Free[Literal[0, 1, 2, 3]] = 2
    """What DeepSpeed ZeRO shards: 1 moments, 2 and gradients, 3 and weights; 0 nothing (for comparison, fp32 only)."""
    micro_batch: Free[int | None] = Field(default=None, ge=1)
    """Rows of one forward pass on one rank, in rows. null: the rank's share of the batch, 16 at most; under exact: any
    a quarter of the batch, 16 at most, whatever the number of ranks."""
    precision: Branch[Literal["auto", "fp32", "bf16"]] = "auto"
    """bf16 keeps fp32 master weights. auto: bf16 on a GPU, fp32 on a CPU."""
    exact: Free[Literal["any", "topology", "samples"]] = "topology"
    """any: bitwise the same run at any number of ranks and ZeRO stage 1 to 3 (its cost is printed); topology: bitwise
    the same run at the same ranks, stage, micro-batch and versions (deterministic kernels); samples: only which
    samples each step sees is promised, with the fastest kernels."""
    activation_checkpointing: Free[bool] = False
    """Recompute each block in the backward pass: less memory, about a third more compute."""
    timeout_s: Free[int] = Field(default=600, ge=5)
    """A collective that waits longer than this, or a phase of a step in which nothing moves, is a fault, in seconds."""
    max_skipped: Free[int] = Field(default=5, ge=1)
    """Skipped updates in a row (non-finite gradients) after which the run stops."""

    def bf16(self, gpu: bool) -> bool:
        """Whether it computes in bf16, on a GPU or without one."""
        return self.precision == "bf16" or (self.precision == "auto" and gpu)


class Launch(Section):
    """Processes, and what Slurm or Ray is asked for to run them."""

    ranks: Free[int] = Field(default=1, ge=1, le=131072)
    """Processes that train together over all nodes, in ranks. With GPUs: one GPU each."""
    nodes: Free[int] = Field(default=1, ge=1)
    """Machines that share the ranks equally. Here it is 1; Slurm gives as many; Ray spreads ranks by itself."""
    min_ranks: Free[int] = Field(default=0, ge=0)
    """With Ray or Slurm: go on with as few ranks as this when nodes are lost; 0: `ranks`. Ray grows again up to `ranks`
    when nodes come; a Slurm job has them back when it is queued again."""
    threads: Free[int] = Field(default=1, ge=1)
    """CPU threads of one rank; ranks on one machine share its cores."""
    gpus_per_rank: Free[int] = Field(default=0, ge=0, le=1)
    """GPUs that a rank asks Slurm or Ray for; 1 to train on GPUs there. On this machine ranks find theirs."""
    memory_gb: Free[float] = Field(default=0.0, ge=0)
    """Memory of one rank that Slurm or Ray is asked for, in GB; 0: what a site gives by default."""
    time_limit_minutes: Free[int] = Field(default=0, ge=0)
    """Slurm ends a job after this long, in minutes; it saves before that and is queued again. 0: what the updates that
    are left take at the run's own speed, and some more; where that isn't known yet, the partition's own."""
    pip: Free[tuple[str, ...]] = ()
    """With Ray: what its nodes lack, as pip names it (torch==2.13.0, a wheel's URL); Ray installs it for the job alone,
    in its runtime environment. None: the nodes have all that Luban needs."""
    max_restarts: Free[int] = Field(default=3, ge=0)
    """Restarts after a fault without a new checkpoint in between; then the run ends with an error."""
    backoff_s: Free[float] = Field(default=1.0, ge=0)
    """Wait before the first restart, in seconds; doubled at each further one, a minute at most."""
    stop_after_minutes: Free[float] = Field(default=0.0, ge=0)
    """Save and stop (exit code 75) when one start of the run has lasted so long, in minutes; 0: no budget."""
    preflight: Free[bool] = False
    """Look at the machines first, as `luban doctor` does but without speeds, and start nothing where something would
    end or spoil the run. With Slurm or Ray that is a short job of its own."""

    @model_validator(mode="after")
    def _ranks_fit(self) -> Self:
        if self.ranks % self.nodes:
            raise ValueError(f"ranks {self.ranks} do not divide by nodes {self.nodes}: each node gets equally many")
        if self.min_ranks > self.ranks:
            raise ValueError(f"min_ranks {self.min_ranks} must not exceed ranks {self.ranks}")
        return self


class Checkpoint(Section):
    """When the state is saved, and what is kept."""

    every_steps: Free[int] = Field(default=100, ge=0)
    """Save after each Nth update, in steps; 0: not by steps."""
    every_minutes: Free[float] = Field(default=30.0, ge=0)
    """Save when this long has passed since the last one, in minutes; 0: not by time."""
    keep_last: Free[int] = Field(default=2, ge=1)
    """Newest checkpoints kept; the last verified one is never removed."""
    keep_every: Free[int] = Field(default=0, ge=0)
    """Also keep those of each Nth step, in steps; 0: none."""
    keep_best: Free[bool] = True
    """Also save and keep the one with the best validation loss."""
    store: Free[str | None] = None
    """Where copies go, as an fsspec URL (file:///backup, s3://bucket/luban); the run's name is added. null: nowhere."""
    store_role: Free[Literal["mirror", "primary"]] = "mirror"
    """mirror: written to the run's folder, then copied to the store; primary: written to the store alone."""


class Guard(Section):
    """What is done about non-finite gradients and spikes: back to a verified checkpoint, and past the rows."""

    enabled: Free[bool] = True
    """Watch loss and gradient norm; false: only `engine.max_skipped` stops a run."""
    window: Free[int] = Field(default=64, ge=8)
    """Applied updates whose figures the next one is compared with, in steps."""
    warmup: Free[int] = Field(default=32, ge=8)
    """Applied updates before anything is called a spike, in steps."""
    threshold: Free[float] = Field(default=10.0, gt=0)
    """A spike is a loss or gradient norm so many robust standard deviations above the window's median."""
    confirm: Free[int] = Field(default=2, ge=1)
    """Updates in a row above the threshold that make a spike, in steps; one is enough where the loss is at three times
    the threshold, or the norm at a hundred times its median."""
    max_nonfinite: Free[int] = Field(default=3, ge=1)
    """Non-finite updates in a row after which the run rolls back, in steps; if engine.max_skipped lets it."""
    margin: Free[int] = Field(default=1, ge=0)
    """Updates skipped before and after the offending ones, in steps; doubled each time the trouble comes back within
    `window` updates, and never more than `window`."""
    max_rollbacks: Free[int] = Field(default=4, ge=0)
    """Rollbacks, each within `window` updates of the one before, after which the run ends with an error."""


class Evaluate(Section):
    """Validation and samples while training; neither moves the order of samples or a random state."""

    every_steps: Free[int] = Field(default=100, ge=0)
    """Evaluate after each Nth update and at the end, in steps; 0: only at the end."""
    rows: Free[int] = Field(default=128, ge=0)
    """Rows of the validation split, always the same ones, in rows; 0: all."""
    prompts: Free[tuple[str, ...]] = ()
    """Texts to continue at each evaluation."""
    sample_tokens: Free[int] = Field(default=48, ge=1)
    """Length of each continuation, in tokens."""
    temperature: Free[float] = Field(default=0.8, ge=0)
    """Temperature of the continuations; 0: greedy."""


class Log(Section):
    """What is shown while it runs."""

    every_steps: Free[int] = Field(default=10, ge=1)
    """Write a line of metrics each Nth update, in steps."""
    norms_every: Free[int] = Field(default=0, ge=0)
    """Log each layer's weight and gradient norm each Nth update, in steps; 0: never."""
    profile: Free[tuple[int, int] | None] = None
    """Write a torch profiler trace of the steps [from, to) to the run's logs."""
    wandb: Free[Literal["auto", "online", "offline", "off"]] = "auto"
    """Weights & Biases on rank 0. auto: online where a key is configured, else offline into the run folder."""
    wandb_project: Free[str] = "luban"
    """The project its runs appear in."""


class Recipe(Section):
    """One run."""

    name: Free[str] = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run's folder under runs/: letters, digits, dot, dash and underscore."""
    seed: Fixed[int] = Field(default=1, ge=0, lt=2**63)
    """Decides the initial weights, the order of samples and every random draw."""
    objective: Fixed[Literal["causal"]] = "causal"
    """What is predicted: causal, the next token. In a dataset of examples only their marked tokens count."""
    ancestor: Fixed[str | None] = None
    """The checkpoint whose weights this run starts from, as RUN@STEP; set by `--from`."""
    data: Data = Data()
    """The dataset."""
    model: Model = Model()
    """The network."""
    train: Train = Train()
    """Length and batch."""
    optimizer: Optimizer = Optimizer()
    """AdamW."""
    schedule: Schedule = Schedule()
    """The learning rate."""
    engine: Engine = Engine()
    """DeepSpeed."""
    launch: Launch = Launch()
    """Processes."""
    checkpoint: Checkpoint = Checkpoint()
    """Checkpoints."""
    guard: Guard = Guard()
    """Spikes and non-finite gradients."""
    evaluate: Evaluate = Evaluate()
    """Validation."""
    log: Log = Log()
    """Metrics."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        if self.schedule.kind != "constant" and self.schedule.warmup_steps >= self.train.steps:
            problems.append(
                f"schedule.warmup_steps {self.schedule.warmup_steps} must be below train.steps {self.train.steps}"
            )
        if self.schedule.kind == "wsd" and self.schedule.warmup_steps + self.schedule.decay_steps > self.train.steps:
            problems.append("schedule.warmup_steps + schedule.decay_steps must not exceed train.steps")
        if self.engine.zero_stage == 0 and self.engine.precision == "bf16":
            problems.append("engine.zero_stage 0 is for comparison in fp32: with bf16 take stage 1, 2 or 3")
        if self.engine.zero_stage == 0 and self.engine.exact == "any":
            problems.append("engine.zero_stage 0 is for comparison: engine.exact any needs stage 1, 2 or 3")
        if self.checkpoint.store_role == "primary" and not self.checkpoint.store:
            problems.append("checkpoint.store_role primary needs a checkpoint.store, such as file:///mnt/luban")
        if self.guard.enabled and self.guard.confirm > self.guard.window:
            problems.append(f"guard.confirm {self.guard.confirm} must not exceed guard.window {self.guard.window}")
        if self.log.profile and not 0 <= self.log.profile[0] < self.log.profile[1] <= self.train.steps:
            problems.append(
                f"log.profile {list(self.log.profile)} must be [from, to] with 0 <= from < to <= train.steps"
            )
        unit = lcm(self.train.batch_rows, self.data.lanes)
        for stage in self.data.stages:
            if stage.start % unit:
                below = stage.start // unit * unit
                problems.append(
                    f"a stage of data.stages starts at row {stage.start}, which is in the middle of an update of "
                    f"{self.train.batch_rows} rows, or of a round of {self.data.lanes} lanes: take {below or unit} or "
                    f"{below + unit}"
                )
            if stage.context is not None and stage.context > self.model.context:
                problems.append(
                    f"a stage of data.stages has a context of {stage.context}, and model.context is "
                    f"{self.model.context}: raise that, or lower the stage's"
                )
        if self.train.patience and not self.evaluate.every_steps:
            problems.append("train.patience counts evaluations: set evaluate.every_steps above 0")
        if problems:
            raise ValueError("; ".join(problems))
        return self
