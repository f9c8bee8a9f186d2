"""The driver of a dataset build on Ray: parts go to the cluster's CPUs as tasks, files through a folder that all share.

Ray runs a task again where its worker or node dies, three times; tasks write nothing under its name before it is
whole, so one that ran twice leaves what one run leaves. If the driver dies, Ray ends the job's tasks, and the next
`luban data build` of the same recipe goes on behind the last finished part.

Every task asks for one CPU and nothing holds any between tasks: actors that hold all of a cluster's CPUs leave none
for the tasks they wait for.
"""

import logging
import os
import secrets
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from typing import Any

from data.build.build import build, versions
from data.errors import UserError
from data.progress import Lines
from data.recipe import DatasetRecipe
from data.settings import load

TRIES = 3
"""Times that a task is run again after its worker or node died."""


class RayExecutor(Executor):
    """Runs calls as tasks of the Ray cluster that this process is connected to."""

    def __init__(self) -> None:
        self._tasks: dict[Callable[..., Any], Any] = {}
        self._running: dict[Any, Future] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Run a function of a module that the cluster has, too."""
        import ray

        if fn not in self._tasks:
            self._tasks[fn] = ray.remote(num_cpus=1, max_retries=TRIES)(fn)
        future: Future = Future()
        reference = self._tasks[fn].remote(*args, **kwargs)
        self._running[reference] = future
        reference.future().add_done_callback(lambda done: self._end(reference, done))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Have the cluster drop what is under way."""
        import ray

        for reference in list(self._running):
            ray.cancel(reference, force=True)

    def _end(self, reference: Any, done: Future) -> None:
        future = self._running.pop(reference)
        error = done.exception()
        if error is None:
            future.set_result(done.result())
        else:
            future.set_exception(_own(error))


def _own(error: BaseException) -> BaseException:
    """What the function itself raised; a cluster's failure as that of an executor."""
    from ray.exceptions import RayError, RayTaskError

    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, BaseException) else error
    return BrokenExecutor(str(error)) if isinstance(error, RayError) else error


def check_nodes(out: Path, recipe: DatasetRecipe) -> int:
    """Have every node write into the dataset's folder; the CPUs they have altogether. A node that dies meanwhile is
    said, and not counted.

    Raises:
        UserError: a node has another folder there, or other versions of what decides the bytes.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    out.mkdir(parents=True, exist_ok=True)
    word = secrets.token_hex(8)
    told = out / f".asked-{word}.tmp"
    told.write_text(word)
    answer = ray.remote(num_cpus=0, max_retries=0)(_answer)
    asked = [
        (
            node,
            answer.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                told, node["NodeID"], recipe
            ),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    cpus = 0.0
    try:
        ours = versions(recipe)
        for node, reference in asked:
            address = node["NodeManagerAddress"]
            try:
                seen, wrote, theirs = ray.get(reference)
            except RayTaskError:
                raise
            except RayError:
                print(f"the node {address} is gone: the build goes on without it", file=sys.stderr, flush=True)
                continue
            cpus += node["Resources"].get("CPU", 0)
            if seen != word or not wrote.exists():
                raise UserError(
                    f"the node {address} of the Ray cluster has another {out} than the driver: a dataset is built on "
                    "Ray in a folder that all nodes share (NFS, Lustre ...). Choose another --out."
                )
            other = {name: held for name, held in theirs.items() if ours[name] != held}
            differing = [f"{name} {held} there, {ours[name]} here" for name, held in other.items()]
            if differing:
                raise UserError(f"the node {address} of the Ray cluster would make other bytes: {', '.join(differing)}")
    finally:
        for left in out.glob(f".*-{word}*.tmp"):
            left.unlink(missing_ok=True)
    return int(cpus)


def _answer(told: Path, node: str, recipe: DatasetRecipe) -> tuple[str, Path, dict[str, str]]:
    """What a node reads in the folder, what it wrote there, and its libraries' versions."""
    wrote = told.with_name(f"{told.stem}-{node}.tmp")
    try:
        seen = told.read_text()
        wrote.write_text(seen)
    except OSError:
        seen = ""
    return seen, wrote, versions(recipe)


def main(recipe_file: Path, out: Path) -> int:
    """Build on the cluster that this job runs on; returns the exit code: 2 after a user's mistake."""
    import ray

    ray.init(logging_level=logging.WARNING, log_to_driver=False)
    try:
        recipe = load(DatasetRecipe, recipe_file)
        cpus = check_nodes(out, recipe)
        workers = recipe.workers or max(1, cpus)
        print(f"{workers} CPUs of {len(ray.nodes())} nodes", file=sys.stderr, flush=True)
        with RayExecutor() as hands:
            build(recipe.model_copy(update={"workers": workers}), out, hands, Lines(every=5))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    finally:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
