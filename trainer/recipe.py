"""The whole configuration of a run, and its reference manual.

A recipe is YAML plus `key=value`; `luban pretrain RECIPE --show` prints it resolved, each setting under its text.
Every setting is marked with what may become of it once the run has begun: [fixed] never, [branch] only in a new run
that starts from this one (`--from`), [free] at any start. Names of the model's settings are Hugging Face's.
"""

from collections.abc import Iterator
from math import lcm
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from data.settings import Branch, Fixed, Free, Section
from trainer.recipe_adapter import Adapter
from trainer.recipe_data import Data
from trainer.recipe_model import Model
from trainer.recipe_objective import Objective

RECIPES = Path(__file__).with_name("recipes")
"""Recipes that come with Luban."""


Decay = Annotated[float, Field(ge=0, lt=1)]


class Train(Section):
    """How long, and how much at once."""

    steps: Branch[int] = Field(default=600, ge=1)
    """Optimizer updates of the whole run; with `patience`, at most."""
    batch_rows: Branch[int] = Field(default=32, ge=1)
    """Rows of one update, over all ranks and accumulation, in rows."""
    trainable: Fixed[tuple[str, ...]] = ("*",)
    """Parameters that learn, as shell patterns over their names, such as `model.layers.5.*`; the rest is frozen. `head`
    means the model's head, and a pattern after a `!` freezes: ["*", "!model.embed_tokens.*"]. With an adapter, what
    learns beside it; ["*"]: nothing does."""
    patience: Branch[int] = Field(default=0, ge=0)
    """Stop after this many evaluations in a row without a better validation loss; 0: never. To train until it stops
    improving, take many steps and a schedule that doesn't look at them: constant or inverse_sqrt."""


class Optimizer(Section):
    """Torch's own AdamW or Adam."""

    kind: Branch[Literal["adamw", "adam"]] = "adamw"
    """adamw: decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101); adam: the decay is L2, added to the
    gradient after clipping (Kingma and Ba 2015, arXiv:1412.6980). Muon is not offered: DeepSpeed 0.19.8 measures and
    clips its orthogonalised update in place of the gradient (`tests/bench/muon.py`)."""
    lr: Branch[float] = Field(default=2e-3, gt=0)
    """Peak learning rate."""
    betas: Branch[tuple[Decay, Decay]] = (0.9, 0.95)
    """Decay of the first and second moments."""
    eps: Branch[float] = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: Branch[float] = Field(default=0.1, ge=0)
    """Decay of matrices; norms, biases and embeddings are not decayed."""
    layer_decay: Branch[float] = Field(default=1.0, gt=0, le=1)
    """Learning rate of each level of the network as a fraction of the level's above: the head and the last norm learn
    at the full rate, the embeddings at layer_decay^(blocks + 1) of it. 1: all alike."""
    clip: Branch[float | None] = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient; larger ones are scaled down to it. null: no clipping."""

    @field_validator("kind", mode="before")
    @classmethod
    def _no_muon(cls, given: Any) -> Any:
        if str(given).lower() == "muon":
            raise ValueError(
                "DeepSpeed's Muon clips its orthogonalised update, not the gradient, and reports that one's norm: with "
                "clipping it isn't torch's Muon at any ZeRO stage, and the guard would watch a constant; take adamw"
            )
        return given


class Schedule(Section):
    """The learning rate as a pure function of the step."""

    kind: Branch[Literal["cosine", "linear", "inverse_sqrt", "wsd", "constant"]] = "cosine"
    """Shape after the warm-up; wsd stays at the peak and decays linearly in the last decay_steps. constant and
    inverse_sqrt don't look at train.steps: what they give a step is the same however long the run."""
    warmup_steps: Branch[int] = Field(default=40, ge=0)
    """Linear rise from peak/warmup_steps at the first update to the peak, in steps."""
    decay_steps: Branch[int] = Field(default=100, ge=0)
    """Length of the final decay of wsd, in steps; unused by the other kinds."""
    final_ratio: Branch[float] = Field(default=0.1, ge=0, le=1)
    """The last update's learning rate as a fraction of the peak; unused by constant and inverse_sqrt."""

    @property
    def endless(self) -> bool:
        """Whether a step's rate is the same however long the run."""
        return self.kind in ("constant", "inverse_sqrt")


class Engine(Section):
    """How the training state is sharded and computed."""

    zero_stage: Free[Literal[0, 1, 2, 3] | None] = None
    """What DeepSpeed ZeRO shards: 1 moments, 2 and gradients, 3 and weights; 0 nothing, in fp32 only. null: 2, but 0
    for a single rank in fp32, which has nobody to share with and saves up to a quarter of a step (exact: any keeps 2).
    """
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

    def stage(self, ranks: int, bf16: bool) -> int:
        """ZeRO's stage on so many ranks."""
        if self.zero_stage is not None:
            return self.zero_stage
        return 0 if ranks == 1 and not bf16 and self.exact != "any" else 2


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
    ancestor: Fixed[str | None] = None
    """Whose weights this run starts from: a checkpoint, as RUN@STEP, or a Hugging Face directory, as
    DIRECTORY@sha256:DIGEST; set by `--from`."""
    data: Data = Data()
    """The dataset."""
    model: Model = Model()
    """The network."""
    adapter: Adapter = Adapter()
    """Few new weights that learn in place of the network's."""
    objective: Objective = Objective()
    """What it is asked to predict."""
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

    @property
    def room(self) -> int:
        """Tokens of the data that one input takes: the model's context, without an adapter's virtual tokens."""
        return self.model.context - self.adapter.virtual_tokens

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        if self.room < 8:
            problems.append(
                f"adapter.tokens {self.adapter.tokens} leaves {self.room} tokens of model.context {self.model.context}"
            )
        if not self.schedule.endless and self.schedule.warmup_steps >= self.train.steps:
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
        problems += self._apart()
        unit = lcm(self.train.batch_rows, self.data.lanes)
        for stage in self.data.stages:
            if stage.start % unit:
                below = stage.start // unit * unit
                problems.append(
                    f"a stage of data.stages starts at row {stage.start}, which is in the middle of an update of "
                    f"{self.train.batch_rows} rows, or of a round of {self.data.lanes} lanes: take {below or unit} or "
                    f"{below + unit}"
                )
            if stage.context is not None and stage.context > self.room:
                problems.append(
                    f"a stage of data.stages has a context of {stage.context}, and the model takes {self.room}: "
                    "lower the stage's, or raise model.context"
                )
        if self.train.patience and not self.evaluate.every_steps:
            problems.append("train.patience counts evaluations: set evaluate.every_steps above 0")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _apart(self) -> Iterator[str]:
        """What would tear apart the rows that are each other's negatives."""
        objective, engine = self.objective, self.engine
        if objective.together == 1:
            return
        for name, rows in (("train.batch_rows", self.train.batch_rows), ("engine.micro_batch", engine.micro_batch)):
            if rows is not None and rows % objective.group:
                below = rows // objective.group * objective.group
                yield (
                    f"{name} {rows} does not divide by objective.group {objective.group}, whose rows are each other's "
                    f"negatives: take {below or objective.group} or {below + objective.group}"
                )
        if self.data.lanes > 1:
            yield f"data.lanes {self.data.lanes} deals consecutive rows apart: objective.kind contrastive takes 1"
        if objective.gather and engine.exact == "any":
            yield "objective.gather makes the loss depend on the ranks, and engine.exact any promises that it doesn't"
        if objective.gather and 0 < self.launch.min_ranks < self.launch.ranks:
            yield (f"objective.gather fixes the number of ranks: set launch.min_ranks {self.launch.min_ranks} to 0")
