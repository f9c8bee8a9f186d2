"""Ray Train as Luban uses it: it places workers, replaces those that are lost, and makes their group smaller or larger.

Which life a group leads, and whether there is a further one, is the supervisor's affair; so Ray Train may begin groups
without end, and its failure budget is unlimited. Four things are done otherwise than it would by itself:
- It counts nodes that have died or are about to be taken away until a view of its own is renewed, every 20 s, and then
  waits in vain for room there. Here the nodes are looked at when they are counted.
- It enlarges a group by killing it. Here the ranks save first, so that a node which joins costs no step.
- Where its controller dies, what that had reserved goes to the next one at once.
- Its workers join no process group: that is done by their children, the ranks.
"""

import logging
import os
import signal
from collections.abc import Callable
from typing import Any

import ray
from ray._private.state import state as cluster_state
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ResizingState
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.job import Job
from cluster.ray.worker import Work, work

SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Of Ray Train, as environment variables; those that are set already stay."""
RESIZE_S = 15.0  # how often it looks for room for more ranks
SAVE_S = 900.0  # what the ranks get to save before a group is enlarged
logger = logging.getLogger("ray.train")


class Devices(Backend):
    """Nothing to set up but this: every rank sees all GPUs of its node that the run has, and LOCAL_RANK is its own."""

    share_cuda_visible_devices = True


class DevicesConfig(BackendConfig):
    """The setting of a backend, as Ray Train wants it."""

    @property
    def backend_cls(self) -> type[Backend]:
        return Devices


class NodesOfNow(ElasticScalingPolicy):
    """How many workers there is room for, on nodes that are there and are going to stay."""

    def _get_reserved_resources(self) -> Any:
        coordinator: Any = getattr(self, "_autoscaling_coordinator")  # noqa: B009 - its annotation is another's
        try:
            asked = coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
            [reserved] = ray.get([asked], timeout=10)
            there = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            staying = there - set(cluster_state.get_draining_nodes())
        except Exception:  # as Ray Train does: it asks again a second later
            logger.warning("cannot tell how many nodes there are", exc_info=True)
            return None
        return {node: held for node, held in reserved.items() if node in staying}


class Regroup(ControllerCallback):
    """Tells the desk before a group is replaced: one that is well saves first, another is lost."""

    def __init__(self, desk: Any):
        self._desk = desk
        self._well = False

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Keep in mind whether the group that is about to be replaced was running."""
        self._well = isinstance(previous_state, ResizingState)

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Waits, in the controller, until the ranks have saved and ended."""
        try:
            if not self._well:
                ray.get(self._desk.replace.remote())
                return
            why = f"there is room for {resize_decision.num_workers} ranks now"
            if not ray.get(self._desk.move.remote(None, why, int(signal.SIGUSR1), SAVE_S), timeout=SAVE_S + 60):
                logger.warning("the ranks have not saved within %g s; their group is replaced all the same", SAVE_S)
        except Exception:  # one here would end the run
            logger.warning("cannot tell the ranks that their group is replaced", exc_info=True)


class Trainer(DataParallelTrainer):
    """With the policy above instead of Ray Train's own, and one name for all controllers of a job.

    What a dead controller has reserved is its own for another three minutes: under the same name the next one has it.
    """

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        name = f"luban-{ray.get_runtime_context().get_job_id()}"
        object.__setattr__(given["train_run_context"], "run_id", name)  # its constructor takes none
        if self.scaling_config.elasticity_enabled:
            given["scaling_policy"] = NodesOfNow(self.scaling_config)
        return super()._initialize_and_run_controller(**given)


def per_rank(job: Job) -> dict[str, float]:
    """What Ray is asked for one rank."""
    wanted = {"CPU": float(job.cpus_per_rank), "GPU": float(job.gpus_per_rank), "memory": job.memory_gb * 1e9}
    return {name: amount for name, amount in wanted.items() if amount}


def fitting(job: Job, desk: Any) -> Callable[[], Any]:
    """A call that runs the job's workers until the desk is closed, and raises whatever Ray Train can't get over."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    elastic = job.min_ranks < job.ranks
    trainer = Trainer(
        work,
        train_loop_config={"work": Work(desk, job.argv[1:], job.environment)},
        backend_config=DevicesConfig(),
        scaling_config=ScalingConfig(
            num_workers=(job.min_ranks, job.ranks) if elastic else job.ranks,
            use_gpu=job.gpus_per_rank > 0,
            resources_per_worker=per_rank(job),
            elastic_resize_monitor_interval_s=RESIZE_S,
            placement_strategy="PACK",
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(job.run.absolute()),
            failure_config=FailureConfig(max_failures=-1),
            logging_config=LoggingConfig(log_level="WARNING"),  # it tells every 15 s that nothing has changed
            callbacks=[Regroup(desk)],  # type: ignore[list-item]
        ),
    )
    return trainer.fit
