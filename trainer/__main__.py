"""One rank: `python -P -m trainer RUN`, with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT set.

It knows nothing of who started it. Its outcome (done, stopped, user_error, fault) is an event of its attempt, written
by rank 0; it exits 0 for all but a fault, and 2 for a mistake of the user that could not be written there.
USR2 writes the stacks of all its threads to its log.
"""

import argparse
import errno
import faulthandler
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from data.errors import UserError
from trainer import watchdog
from trainer.signals import Stop


def main() -> int:
    """Train; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    parser.add_argument("run", type=Path, help="the run's folder")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--restart", action="store_true", help="a supervisor starts the run anew after a fault")
    how.add_argument("--takeover", action="store_true", help="whoever holds the run is fenced, not respected")
    parser.add_argument("--spent", type=float, default=0.0, help="seconds of the time budget used by earlier lives")
    parser.add_argument("--life", help="a name for this life of the run, for its record")
    parser.add_argument("--logs", type=Path, help="write what this rank says to rank-R.log in this folder")
    parser.add_argument("--until", type=int, help="stop after this update; the schedule stays the recipe's")
    parser.add_argument("--save-at", type=int, help="also save after this update")
    arguments = parser.parse_args()
    if arguments.logs:
        speak_into(arguments.logs / f"rank-{os.environ['RANK']}.log")
    how = "restart" if arguments.restart else "takeover" if arguments.takeover else "start"
    stop = Stop()  # first of all: a signal during the imports is a stop too
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from trainer.loop import FENCED, Fenced, Loop
    from trainer.run import read_recipe
    from trainer.session import begin
    from trainer.world import join, leave

    session = None
    try:
        recipe = read_recipe(arguments.run)
        world = join(recipe.engine.timeout_s + watchdog.HEAD_START_S)
        watchdog.enter("the start-up", watchdog.START_UP_S)
        watchdog.watch(recipe.engine.timeout_s)
        session = begin(arguments.run, world, how, arguments.life)
        if session.writer:
            held, minutes = session, recipe.launch.stop_after_minutes
            stop.heed(arguments.run, lambda: held.attempt, minutes, arguments.spent)
        outcome, message = Loop(session, stop, arguments.until, arguments.save_at).train()
        code = 0
    except Fenced as error:
        outcome, message, code = FENCED, str(error), 0 if session else 2
        tell(message)
    except UserError as error:
        outcome, message, code = "user_error", str(error), 0 if session and session.writer else 2
        tell(message)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        with suppress(OSError):
            traceback.print_exc()
        outcome, message, code = ("user_error" if full else "fault"), str(error), 2 if full else 1
        if full:
            tell(f"{error}: make room and start the run again")
    except Exception as error:
        traceback.print_exc()
        outcome, message, code = "fault", f"{type(error).__name__}: {error}", 1
    if session:
        session.clock.enter("shutdown")
    watchdog.rest()
    if outcome == "fault":
        with suppress(OSError):
            watchdog.tell_fault(message)
    if session and session.writer:
        try:
            session.writer.append("outcome", outcome=outcome, message=message, clock=session.clock.seconds())
        except UserError as error:  # a full disk can't even take the outcome: the exit code tells it
            tell(str(error))
            code = 2
    if session and session.tracker:
        with suppress(OSError, UserError):
            session.tracker.finish({"done": 0, "stopped": 75, "user_error": 2}.get(outcome, 1))
    if session and session.writer:
        if session.timesheet:
            with suppress(UserError):
                session.timesheet.write(least_s=0)
        session.writer.close()
    if outcome not in ("done", "stopped"):
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)  # no collective after an error: destructors of process groups would wait for the others
    if session:
        session.feed.close()
        leave()
    return code


def speak_into(log: Path) -> None:
    """From now on this process and the libraries in it write to `log`, whoever started it."""
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())


def tell(mistake: str) -> None:
    """Say a user's mistake where the supervisor finds it: in the log, unless the log's disk is full too."""
    with suppress(OSError):
        print(f"luban: error: {mistake}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    code = main()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # all is done; the interpreter's own end can abort where a daemon thread is inside torch
