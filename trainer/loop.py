"""The story of one step: rows, agreement, forward and backward, verdict, record.

Two things cross between ranks on the CPU beside the engine's own collectives: before the step, eight integers (label
tokens, six flags, the digest of what was read); after it, one float, the loss of the step before, whose copy to the
host was begun a step ago. Nothing else waits for the device. Learning rate, tokens and the step number advance only on
applied updates; the positions of a skipped one are passed over and recorded as skipped.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from trainer import watchdog
from trainer.claim import Fenced
from trainer.exact import addable
from trainer.feed import Step
from trainer.policies import Checkpoints, Diagnostics, Evaluations
from trainer.rollback import RollBack, Watch, roll_back
from trainer.schedule import learning_rate
from trainer.session import Session
from trainer.signals import Stop

DONE, STOPPED, FENCED = "done", "stopped", "fenced"


@dataclass(frozen=True)
class Agreed:
    """What all ranks know before an update."""

    label_tokens: int
    stop: bool
    fenced: bool
    save: bool
    trouble: bool
    """A rank's guard has seen what a rollback must undo."""
    failed: bool
    """The checkpoint under way could not be published."""
    written: bool
    """Every rank's part of it is on the disk."""
    digest: int


@dataclass(frozen=True)
class Pending:
    """An update whose loss is still on its way to the host."""

    event: dict[str, Any]
    figures: "OnItsWay"
    """The sum of this rank's token losses, and the gradient's norm."""
    label_tokens: int
    tokens: int
    skipped: int
    norms: dict[str, float]
    """Of each layer, where they were measured."""


class OnItsWay:
    """Scalars copied from the device to the host behind the step that made them; only `read` waits, for them alone."""

    def __init__(self, *scalars: Tensor | float):
        self._host = [_begin_copy(scalar) if isinstance(scalar, Tensor) else scalar for scalar in scalars]
        self._arrived: torch.cuda.Event | None = None
        if any(isinstance(scalar, Tensor) and scalar.is_cuda for scalar in scalars):
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        """The scalars, in order."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [float(scalar) for scalar in self._host]


def _begin_copy(scalar: Tensor) -> Tensor:
    scalar = scalar.detach()
    if not scalar.is_cuda:
        return scalar
    return torch.empty_like(scalar, device="cpu", pin_memory=True).copy_(scalar, non_blocking=True)


class Loop:
    """Drives a session to its end."""

    def __init__(self, session: Session, stop: Stop, until: int | None = None, save_at: int | None = None):
        """
        Args:
            until: end after this update, short of the run's last one or beyond it; the schedule doesn't move.
            save_at: save after this update, whatever the policy says.
        """
        self.s, self.stop, self.save_at = session, stop, save_at
        self.until = session.recipe.train.steps if until is None else until
        self.pending: Pending | None = None
        self.watch = Watch(session)
        self.postponed = False
        """A save is due and waits until nothing is suspected of the weights."""
        self.checkpoints = Checkpoints(session)
        self.evaluations = Evaluations(session)
        self.diagnostics = Diagnostics(session)

    def train(self) -> tuple[str, str]:
        """Train until the last step, a stop, or the end of patience. Returns (outcome, why).

        Raises:
            UserError: too many updates in a row were skipped, trouble came back too often, or the disk is full.
            Fenced: a newer attempt has begun.
        """
        while True:
            try:
                return self.updates()
            except RollBack:
                self.settle()
                with self.s.clock.of("checkpoint"):
                    self.checkpoints.finish()
                roll_back(self.s, self.watch)
                self.checkpoints.begin()
                self.postponed = False

    def updates(self) -> tuple[str, str]:
        """One update after the other, as `train`. Raises RollBack, on all ranks at once, where the guard says so."""
        progress, last = self.s.progress, self.until
        outcome, reason = DONE, f"step {last} reached"
        if last < self.s.recipe.train.steps:
            outcome, reason = STOPPED, f"as asked at step {last}"
        self.s.clock.enter("compute")
        while progress.step < last and not self.out_of_patience():
            self.diagnostics.before_step(progress.step)
            rows = self.next_rows()
            agreed = self.agree(rows)
            if agreed.fenced:
                raise Fenced(f"taken over: attempt {self.s.attempt + 1} of {self.s.run} has begun")
            if agreed.written or agreed.failed:
                with self.s.clock.of("checkpoint"):
                    self.checkpoints.go_on(agreed.failed)
            if agreed.trouble:
                raise RollBack
            if agreed.stop:
                self.end()
                return STOPPED, f"by {self.stop.reason or 'a signal to another rank'} at step {progress.step}"
            if not agreed.label_tokens:
                self.pass_over(rows, agreed)
                continue
            loss = self.forward_backward(rows, agreed.label_tokens)
            norms = self.diagnostics.norms(progress.step + 1)
            self.update(rows, agreed, loss, norms)
            self.s.meter.step(self.s.inputs.read_tokens(rows.stop - rows.start, agreed.label_tokens))
            self.after_update(agreed)
        if self.out_of_patience():
            best = f"; the best was at step {progress.best['step']:,} (RUN@best)" if progress.best else ""
            outcome, reason = DONE, f"no better validation loss in {progress.worse} evaluations{best}"
        self.end()
        return outcome, reason

    def end(self) -> None:
        """Write down what is pending, and save."""
        trusted = self.settle_for_good()
        with self.s.clock.of("checkpoint"):
            self.checkpoints.save(retain=trusted)
            self.checkpoints.finish()
            if self.s.mirror:
                self.s.mirror.finish()
        self.diagnostics.end()

    def save(self) -> None:
        """Save the state; training stalls for it."""
        with self.s.clock.of("checkpoint"):
            self.checkpoints.save()

    def next_rows(self) -> Step:
        """This rank's rows of the next update."""
        watchdog.enter("waiting for rows")
        with self.s.clock.of("data_wait"):
            return next(self.s.feed)

    def agree(self, rows: Step) -> Agreed:
        """The only decision point: a rank never acts alone on a signal, a clock or a newer attempt."""
        watchdog.enter("the agreement before a step")
        fenced = self.s.writer is not None and self.s.writer.fenced()
        late = self.s.world.rank == 0 and self.checkpoints.time_is_up()
        saver, troubled = self.checkpoints.saver, self.watch.trouble is not None
        flags = (self.stop.asked, fenced, late, troubled, saver.failed, saver.written)
        labels, *votes, written, digest = self.s.world.total([rows.label_tokens, *map(int, flags), rows.digest])
        stop, fence, save, trouble, failed = (count > 0 for count in votes)
        return Agreed(labels, stop, fence, save, trouble, failed, written == self.s.world.size, digest)

    def forward_backward(self, rows: Step, label_tokens: int) -> Tensor:
        """Accumulate the gradient of this rank's rows. Returns the sum of their token losses, float64 on the device."""
        total = torch.zeros((), dtype=torch.float64, device=self.s.world.device)
        for number, (batch, first) in enumerate(zip(rows.batches, rows.first, strict=True), 1):
            watchdog.enter("forward and backward")
            self.s.seed(first)
            loss = self.s.objective.loss(self.s.engine.model, batch)
            self.s.engine.backward(loss, label_tokens, last=number == len(rows.batches))
            total += addable(loss)
        return total

    def update(self, rows: Step, agreed: Agreed, loss: Tensor, norms: dict[str, float]) -> None:
        """Apply the gradient, or don't; then settle the update before."""
        watchdog.enter("the update")
        progress, recipe = self.s.progress, self.s.recipe
        lr = learning_rate(progress.step, recipe.schedule, recipe.optimizer.lr, recipe.train.steps)
        verdict = self.s.engine.step(lr)
        progress.consumed = rows.stop
        if verdict.applied:
            progress.step += 1
            progress.tokens += agreed.label_tokens
            progress.skipped_in_a_row = 0
        else:
            progress.skipped.append([rows.start, rows.stop])
            progress.skipped_in_a_row += 1
        self.settle()
        event = self.event(rows, agreed, verdict.reason) | {"lr": lr}
        figures, skipped = OnItsWay(loss, verdict.grad_norm), len(progress.skipped)
        self.pending = Pending(event, figures, agreed.label_tokens, progress.tokens, skipped, norms)

    def pass_over(self, rows: Step, agreed: Agreed) -> None:
        """Skip rows in which nothing counts, where an update would only decay the weights, or that the guard avoids."""
        self.settle()
        self.s.progress.consumed = rows.stop
        self.s.progress.skipped.append([rows.start, rows.stop])
        if self.s.writer is not None:
            event = self.event(rows, agreed, rows.passed_over or "no label tokens")
            self.s.writer.append("step", **event, lr=None, loss=None, grad_norm=None)
            self.s.say(f"skipped after step {event['step']}, positions {event['positions']}: {event['reason']}")

    def event(self, rows: Step, agreed: Agreed, skipped_for: str | None) -> dict[str, Any]:
        """What the record says of an update whose loss is not known yet."""
        return {
            "step": self.s.progress.step,
            "positions": [rows.start, rows.stop],
            "labels": agreed.label_tokens,
            "rows": None if rows.passed_over else f"{agreed.digest:016x}",
            "verdict": "skipped" if skipped_for else "applied",
            "reason": skipped_for,
        }

    def settle(self) -> None:
        """Write down the pending update, whose loss has arrived by now."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        watchdog.enter("settling the update before")
        mine, norm = pending.figures.read()
        (total,) = self.s.world.total_floats([mine])
        loss, step = total / pending.label_tokens, pending.event["step"]
        self.watch.see(pending.event, loss, norm)
        if self.s.writer is None or self.s.tracker is None or self.s.timesheet is None:
            return
        self.s.writer.append("step", **pending.event, loss=loss, grad_norm=norm)
        self.s.timesheet.write()
        if pending.event["verdict"] == "skipped":
            self.s.say(
                f"update skipped after step {step}, positions {pending.event['positions']}: {pending.event['reason']}"
            )
            return  # the line of metrics with this number of steps is that of the update before
        if step % self.s.recipe.log.every_steps == 0 or step in (1, self.s.recipe.train.steps) or pending.norms:
            line = self.s.meter.line(
                step=step, labels=pending.tokens, loss=loss, grad_norm=norm, lr=pending.event["lr"],
                applied=step, skipped=pending.skipped,
            )  # fmt: skip
            line |= self.s.inputs.epochs(pending.event["positions"][1])
            self.s.tracker.log(line | pending.norms | self.s.timesheet.figures())
            while self.s.meter.notes:
                self.s.say(self.s.meter.notes.pop(0))

    def settle_for_good(self) -> bool:
        """Settle before the weights are judged or kept; returns whether nothing is suspected of them. Collective.

        Raises:
            RollBack: on all ranks, where they are not to be kept.
        """
        self.settle()
        return self.watch.agree()

    def out_of_patience(self) -> bool:
        """Whether the validation loss has not improved for too long."""
        patience = self.s.recipe.train.patience
        return bool(patience) and self.s.progress.worse >= patience

    def after_update(self, agreed: Agreed) -> None:
        """Evaluate and save where it is time."""
        progress, recipe = self.s.progress, self.s.recipe
        if progress.skipped_in_a_row:
            if progress.skipped_in_a_row >= recipe.engine.max_skipped:
                self.settle_for_good()
                raise UserError(
                    f"{progress.skipped_in_a_row} updates in a row had a non-finite gradient, after step "
                    f"{progress.step}: lower optimizer.lr, or clip, and start from an earlier checkpoint with --from"
                )
            return
        improved = False
        if self.evaluations.due(progress.step):
            trusted = self.settle_for_good()
            with self.s.clock.of("evaluation"):
                improved = self.evaluations.run(trusted)
        wanted = agreed.save or self.postponed or progress.step == self.save_at
        if wanted or self.checkpoints.due(progress.step, improved):
            self.postponed = not self.settle_for_good()
            if not self.postponed:
                self.save()
