"""`--on ray[=ADDRESS]`: a Ray job whose driver supervises the run, with ranks in workers of Ray Train.

What is submitted is this installation's own code (the packages `data`, `trainer` and `cluster`, as `py_modules`), so
that a cluster runs what the person has before him; what the code depends on is the nodes' own, or is named by
`launch.pip`, which Ray installs for the job. No secret is submitted: what ranks need, such as WANDB_API_KEY, they take
from the environment that Ray was started in.
"""

import json
import logging
import os
import secrets
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import submission
from cluster.hold import Hold
from cluster.job import DONE, STOPPED, Job
from cluster.ray.dashboard import Dashboard
from data.errors import UserError

PACKAGES = ("data", "trainer", "cluster")
STOP_WAIT_S = 900
"""What a driver gets to save after `ray job stop`; Ray's own 3 s are too short for a checkpoint."""
WAITING, RUNNING = "PENDING", "RUNNING"
OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Variables by which Ray's client would go elsewhere than to the address that it is given."""


class OnRay:
    """The launcher behind `--on ray`, and the scheduler of what it submitted."""

    def __init__(self, address: str = ""):
        """
        Args:
            address: of the cluster's dashboard; empty: of RAY_ADDRESS, or this machine's.

        Raises:
            UserError: it is no such address.
        """
        self._dashboard = Dashboard(address)

    def render(self, job: Job) -> str:
        """The submission, as JSON."""
        return json.dumps({"address": self._dashboard.address, **request(job, "JOB")}, indent=2) + "\n"

    def check(self, job: Job) -> None:
        """Raises UserError where the cluster is out of reach or open to anybody, or can't have room for the job."""
        self.check_cluster()
        if problem := shortage(job, self._dashboard.nodes()):
            if not self._dashboard.grows():
                raise UserError(f"the Ray cluster at {self._dashboard.address} {problem}")
            print(f"the Ray cluster {problem} yet; its autoscaler is asked for more")

    def check_cluster(self) -> None:
        """Raises UserError where the cluster is out of reach, of another version, or open to anybody."""
        self._dashboard.check_version()
        if self._dashboard.is_open():
            raise UserError(
                f"the Ray cluster at {self._dashboard.address} runs code for anybody, with or without a token: start "
                "it with RAY_AUTH_MODE=token, or reach it over loopback (ssh -L 8265:127.0.0.1:8265 HEAD)"
            )

    def submit(self, job: Job, held: Hold) -> int:
        """Hand the job over; returns 0."""
        name = f"luban-{job.run.name}-{secrets.token_hex(4)}"
        on = f"ray={self._dashboard.address}"
        before = submission.read(job.run)
        submission.write(job.run, on, name)  # first: the driver believes no folder that doesn't name it
        try:
            self.hand_over(request(job, name))
        except BaseException:
            if before is None:
                (job.run / submission.FILE).unlink(missing_ok=True)
            else:
                submission.write(job.run, before.on, before.id)
            raise
        print(f"submitted {name} to {self._dashboard.address}")
        if job.recorded:
            verbs = ", ".join(f"luban {verb} {job.run.name}" for verb in ("status", "logs -f", "stop"))
            print(f"it goes on without this command: {verbs}")
        return 0

    def state(self, id: str) -> str | None:
        """What Ray says of a job: queued or running; None where it is over or unknown."""
        found = self._dashboard.job(id)
        status = found.get("status") if found else None
        return {WAITING: "queued", RUNNING: "running"}.get(status or "")

    def reason(self, id: str) -> str | None:
        """The driver's own last word, where the job failed by anything but a stop."""
        found = self._dashboard.job(id) or {}
        if found.get("status") != "FAILED" or found.get("driver_exit_code") in (DONE, STOPPED):
            return None
        return last_word(found.get("message") or "")

    def cancel(self, id: str) -> None:
        """End a job."""
        self._dashboard.stop_job(id)

    def hand_over(self, what: dict[str, Any]) -> None:
        """Have Ray take a job: the arguments of its `submit_job`. Raises UserError where it doesn't."""
        mode = "token" if self._dashboard.headers else "disabled"
        with _environment(dict.fromkeys(OVERRIDES) | {"RAY_AUTH_MODE": mode}), _quiet():
            import requests
            from ray.job_submission import JobSubmissionClient

            try:
                client = JobSubmissionClient(self._dashboard.address, headers=dict(self._dashboard.headers))
                client.submit_job(**what)
            except (RuntimeError, ConnectionError, requests.RequestException) as error:
                reason = str(error).strip().splitlines()[:1]
                raise UserError(
                    f"the Ray cluster at {self._dashboard.address} did not take the job: {''.join(reason)[:300]}"
                ) from None


def request(job: Job, name: str) -> dict[str, Any]:
    """What is submitted, as the arguments of Ray's `submit_job`."""
    run = str(job.run.absolute())
    words = ["python", "-P", "-m", "cluster.ray.driver", run, "--job", name, *(["--takeover"] if job.takeover else [])]
    words += [] if job.recorded else ["--unrecorded", *job.argv[1:]]
    ranks = f"{job.ranks}" if job.min_ranks == job.ranks else f"{job.min_ranks} to {job.ranks}"
    wanted = [f"{job.cpus_per_rank} CPU", f"{job.gpus_per_rank} GPU", f"{job.memory_gb:g} GB"]
    return {
        "submission_id": name,
        "entrypoint": shlex.join(words),
        "runtime_env": {
            "py_modules": [str(Path(__file__).parent.parent / package) for package in PACKAGES],
            "excludes": ["__pycache__"],
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
            **({"pip": list(job.pip)} if job.pip else {}),
        },
        "metadata": {
            "run": run,
            "ranks": ranks,
            "per_rank": ", ".join(text for text in wanted if not text.startswith("0 ")),
        },
    }


def shortage(job: Job, nodes: Sequence[dict[str, float]]) -> str | None:
    """What a cluster lacks for a job, in words; None where there is room for its least number of ranks.

    Args:
        nodes: each one's resources: CPU, GPU, memory in bytes.
    """
    wanted = {"GPU": job.gpus_per_rank, "CPU": job.cpus_per_rank, "memory": job.memory_gb * 1e9}
    for name, amount in wanted.items():
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if amount > most:
            unit, size = ("GB", 1e9) if name == "memory" else (f"{name}s", 1)
            return f"has no node for a rank of {amount / size:g} {unit}: the most that one has is {most / size:g}"
    room = sum(int(min(node.get(name, 0.0) // each for name, each in wanted.items() if each)) for node in nodes)
    if room < job.min_ranks:
        gpus = sum(node.get("GPU", 0.0) for node in nodes)
        return f"has room for {room} of {job.min_ranks} ranks: {len(nodes)} nodes with {gpus:g} GPUs together"
    return None


def last_word(message: str) -> str:
    """What Ray's message of a failed job comes down to: the line that begins with "luban: ", or its last line."""
    lines = [line for line in message.splitlines() if line.strip()]
    said = [line.removeprefix("luban: ") for line in lines if line.startswith("luban: ")]
    return (said or lines or ["Ray gives no reason"])[-1]


@contextmanager
def _environment(changes: dict[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray's client tells which packages it uploads, on standard error; errors are told by their exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
