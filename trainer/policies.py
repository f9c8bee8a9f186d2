"""What the loop does beside training: save, evaluate, diagnose. Each is a small object asked at named moments."""

import math
import time
from typing import Any

import torch

from data.order.permutation import key
from trainer import checkpoint, watchdog
from trainer.evaluate import mixed
from trainer.generate import generate
from trainer.generation.settings import Decoding
from trainer.mirror import send_record
from trainer.place import Store
from trainer.saver import Saver
from trainer.session import Session

SAMPLES = 12  # what a key is for


class Checkpoints:
    """When to save, and what to keep. The writing goes on behind; the record hears of it when it is done."""

    def __init__(self, session: Session):
        self.s = session
        self.saver = Saver(session.root, session.world, session.engine.spans(), self._fenced, self._sync)
        self.begin()

    def begin(self) -> None:
        """An attempt begins: what it adopted is saved already."""
        self._last = time.monotonic()
        self._saved = self.s.progress.step if self.s.progress.consumed else None

    def _fenced(self) -> bool:
        return self.s.writer is not None and self.s.writer.fenced()

    def _sync(self, name: str) -> None:
        """Make the record of the steps durable, before the checkpoint `name` that they made is published."""
        if self.s.writer is not None:
            self.s.writer.sync()
            if isinstance(self.s.root, Store):
                send_record(self.s.run, self.s.root, name)

    def due(self, step: int, improved: bool) -> bool:
        """Whether the state after `step` is to be saved."""
        policy = self.s.recipe.checkpoint
        by_steps = bool(policy.every_steps) and step % policy.every_steps == 0
        return by_steps or (improved and policy.keep_best)

    def time_is_up(self) -> bool:
        """Whether the last one is too long ago, by this rank's clock; rank 0's counts."""
        minutes = self.s.recipe.checkpoint.every_minutes
        return bool(minutes) and time.monotonic() - self._last > 60 * minutes

    def save(self, retain: bool = True) -> None:
        """Begin to save the state, unless its weights are saved already. Collective; waits for the save before.

        Updates skipped since a save change no weight: whoever resumes there reads and skips them again.

        Args:
            retain: older ones may then be removed; not where the guard suspects these weights.

        Raises:
            UserError: the save before failed (a full disk).
            RuntimeError: AdamW has counted other updates than the loop.
        """
        s, progress = self.s, self.s.progress
        if progress.step == self._saved:
            return
        watchdog.enter("saving")
        began, clock = time.monotonic(), s.clock.seconds()
        self.finish()
        spans, state = s.engine.spans(), self._state()
        if state["adam_step"] != progress.step:
            raise RuntimeError(f"AdamW has counted {state['adam_step']} updates, the run {progress.step}")
        name = checkpoint.folder_name(progress.step, s.attempt)
        best = progress.best["step"] if progress.best is not None else None

        def published(manifest: dict[str, Any], size: int) -> None:
            assert s.writer is not None
            figures = {"seconds": time.monotonic() - began, "stall": stall, "bytes": size, "clock": clock}
            figures |= {"best": best == manifest["step"], "manifest": checkpoint.digest_of(manifest)}
            s.writer.append("checkpoint", step=manifest["step"], name=name, **figures)
            s.saved.append(name)
            if retain:
                try:
                    self._retain(best)
                except OSError as error:  # the checkpoint is there; the next one tries again
                    s.say(f"older checkpoints could not be removed ({error.strerror or error})")
            if s.mirror:
                s.mirror.offer(name, manifest)

        self.saver.begin(name, state, spans, s.frozen, published)
        stall = time.monotonic() - began
        self._last, self._saved = time.monotonic(), progress.step

    def go_on(self, failed: bool) -> None:
        """Every rank has written its part, or publishing failed. Collective. Raises UserError where it went wrong."""
        self.finish() if failed else self.collect()

    def collect(self) -> None:
        """Have the parts that every rank has written published. Collective. Raises UserError where one could not."""
        name = self.saver.collect()
        if name and self.s.mirror and self.s.writer is None:
            self.s.mirror.offer(name, None)

    def finish(self) -> None:
        """Wait until the save under way, if any, is published. Collective. Raises UserError if it failed."""
        self.collect()
        self.saver.finish()

    def _retain(self, best: int | None) -> None:
        """Remove what the policy doesn't keep; on rank 0, in the writer's thread, after a checkpoint was published."""
        s, policy = self.s, self.s.recipe.checkpoint
        assert s.writer is not None
        kept_best = None
        if policy.keep_best and best is not None:
            kept_best = next((held for held in reversed(s.saved) if checkpoint.step_of(held) == best), None)
        gone = checkpoint.superfluous(s.saved, policy.keep_last, policy.keep_every, kept_best)
        if gone and s.writer.retire(gone):
            checkpoint.remove(s.root, gone)
            s.saved = [held for held in s.saved if held not in gone]

    def _state(self) -> dict[str, Any]:
        s = self.s
        return {
            "step": s.progress.step,
            "attempt": s.attempt,
            "progress": vars(s.progress).copy(),
            "adam_step": s.engine.adam_step(),
            "groups": s.engine.hyperparameters(),
            "schedule": s.recipe.schedule.model_dump(mode="json") | {"steps": s.recipe.train.steps},
            "order": s.inputs.order.describe(),
            "random": {"seed": s.recipe.seed, "rule": "torch.manual_seed(key(seed, 11, first position)) per forward"},
            "tokenizer": s.inputs.tokenizer.fingerprint,
            "vocab_size": s.inputs.vocab_size,
            "zero_stage": s.engine.stage,
            "recipe": s.recipe.model_dump(mode="json"),
            "record": s.writer.seal() if s.writer else None,
        }


class Evaluations:
    """Validation and samples, at the same moments on every rank."""

    def __init__(self, session: Session):
        self.s = session

    def due(self, step: int) -> bool:
        """Whether to evaluate after `step`."""
        every = self.s.recipe.evaluate.every_steps
        at_step = bool(every) and step % every == 0
        return bool(self.s.fixed) and (at_step or step == self.s.recipe.train.steps)

    def run(self, trusted: bool) -> bool:
        """Measure and sample, without touching order or random state. Returns whether the loss is the best so far.

        Args:
            trusted: the guard suspects nothing of these weights; others can be neither the best nor worse than it.
        """
        s, progress = self.s, self.s.progress
        began = time.monotonic()
        random_state = torch.get_rng_state()
        each = {name: fixed.measure(s.engine.module, s.world) for name, fixed in s.fixed.items()}
        stage = s.inputs.order.stage(progress.consumed)
        figures = mixed(each, stage.weights)
        samples = self._samples()
        torch.set_rng_state(random_state)
        loss = figures["loss"]
        best = progress.best
        same = best is None or best.get("stage", 0) == stage.start  # losses of other mixtures don't compare
        improved = trusted and math.isfinite(loss) and (best is None or not same or loss < best["loss"])
        if improved:
            progress.best, progress.worse = {"step": progress.step, "loss": loss, "stage": stage.start}, 0
        elif trusted:
            progress.worse += 1
        if s.writer and s.tracker:
            seconds = time.monotonic() - began
            by_source = {"sources": each} if len(each) > 1 else {}
            s.writer.append(
                "evaluation", step=progress.step, set="valid", metrics=figures, seconds=seconds, best=improved,
                samples=samples, **by_source,
            )  # fmt: skip
            named = {f"evaluation/valid/{name}": value for name, value in figures.items()}
            for source, held in by_source.get("sources", {}).items():
                named |= {f"evaluation/valid/{source}/{name}": value for name, value in held.items()}
            s.tracker.log(
                s.meter.axes(progress.step, progress.tokens) | named | {"samples": samples}, kind="evaluation"
            )
        return improved

    def _samples(self) -> list[dict[str, str]]:
        """Continuations of the fixed prompts; every rank makes the same ones, because ZeRO 3 needs them all."""
        s = self.s
        recipe = s.recipe.evaluate
        if not recipe.prompts:
            return []
        prompts = [s.inputs.encode_prompt(text) for text in recipe.prompts]
        decoding = Decoding(
            recipe.sample_tokens, temperature=recipe.temperature, seed=key(s.recipe.seed, SAMPLES) >> 1,
            at_context="stop",
        )  # fmt: skip
        made = generate(
            s.engine.module, prompts, decoding, eos_id=s.inputs.ends, start_id=s.inputs.start_id(s.recipe.model),
            lockstep=True,
        )  # fmt: skip
        texts = [s.inputs.tokenizer.decode(alternatives[0]) for alternatives in made]
        return [{"prompt": prompt, "text": text} for prompt, text in zip(recipe.prompts, texts, strict=True)]


class Diagnostics:
    """Norms of each layer, and a profiler trace of a few steps."""

    def __init__(self, session: Session):
        self.s = session
        self._profiler: Any = None

    def before_step(self, done: int) -> None:
        """A step begins, `done` updates having been applied; rank 0 begins or ends its trace here."""
        window = self.s.recipe.log.profile
        if window is None or self.s.world.rank:
            return
        if self._profiler is not None and done >= window[1]:
            self.end()
        elif self._profiler is None and window[0] <= done < window[1]:
            self._profiler = torch.profiler.profile()
            self._profiler.start()

    def norms(self, step: int) -> dict[str, float]:
        """Each layer's gradient and weight norm where they are due; `step`'s gradient is whole and not yet applied."""
        every = self.s.recipe.log.norms_every
        if not every or step % every:
            return {}
        gradients, weights = self.s.engine.gradient_norms(), self.s.engine.weight_norms()
        values = {f"grad_norm/{name}": norm for name, norm in gradients.items()}
        return values | {f"weight_norm/{name}": norm for name, norm in weights.items()}

    def end(self) -> None:
        """Write the trace, if one is being taken."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        folder = self.s.run / "logs" / f"attempt-{self.s.attempt}"
        folder.mkdir(parents=True, exist_ok=True)
        window = self.s.recipe.log.profile
        assert window is not None
        profiler.export_chrome_trace(str(folder / f"profile-{window[0]}-{window[1]}.json.gz"))
