"""The learning rate as a pure function of the update's index: nothing to save, nothing to fall out of step.

DeepSpeed's own schedules start at 0 and so waste the first update (its linear one the first two); here the first
update already learns, and the last one has exactly the final rate.
"""

import math

from trainer.recipe import Schedule


def learning_rate(step: int, schedule: Schedule, peak: float, steps: int) -> float:
    """The rate of update `step`, counted from 0.

        warm-up      peak * (step + 1) / warmup_steps, so peak at step warmup_steps - 1
        constant     peak
        cosine       half a cosine from the peak to peak * final_ratio at step steps - 1 (SGDR, arXiv:1608.03983)
        linear       a line between the same points
        inverse_sqrt peak * sqrt(warmup_steps / (step + 1)) ("Attention Is All You Need", arXiv:1706.03762, equation 3)
        wsd          peak, then a line to peak * final_ratio over the last decay_steps (MiniCPM, arXiv:2404.06395)

    Steps beyond the run's end keep the last rate. A run of a single update without warm-up takes the peak.

    Args:
        step: 0-based index among the applied updates.
        schedule: the recipe's section.
        peak: `optimizer.lr`.
        steps: updates of the whole run.
    """
    last = steps - 1
    step = min(max(step, 0), last)
    if step < schedule.warmup_steps:
        return peak * ((step + 1) / schedule.warmup_steps)
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "inverse_sqrt":
        return peak * math.sqrt(max(schedule.warmup_steps, 1) / (step + 1))
    top = last - schedule.decay_steps if schedule.kind == "wsd" else max(schedule.warmup_steps - 1, 0)
    if step <= top:
        return peak
    done = (step - top) / (last - top)
    if schedule.kind == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return peak * (1 - done) + peak * schedule.final_ratio * done
