"""The conversation with the wandb package. It may block or raise: only the thread of `tracker.WandB` takes part."""

import contextlib
import os
import re
import secrets
import signal
import socket
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data.remote.origin import short_name
from trainer.recipe import Recipe

AXES = ("train/step", "train/tokens", "train/examples")
NOT_METRICS = ("line", "kind", "time", "samples")
PREEMPTED = 75
"""The exit code of a run that stopped early and can go on."""


class Session:
    """One W&B run, online or offline. Methods raise whatever wandb raises."""

    def __init__(
        self, wandb: Any, folder: Path, recipe: Recipe, facts: Mapping[str, Any], settings: dict[str, Any]
    ) -> None:
        self._wandb, self._folder, self._recipe, self._facts = wandb, folder, recipe, facts
        self._settings = settings
        self._run: Any = None

    def credentials(self) -> tuple[str, Any]:
        """(the server, the credentials for it or None) as W&B itself finds them: environment, netrc, settings."""
        from wandb.sdk.lib import wbauth

        url = self._wandb.setup(settings=self._wandb.Settings(silent=True)).settings.base_url
        return url, wbauth.authenticate_session(host=url, source="luban", prompt=False, update_session=False)

    def start(self, mode: str, keys: Iterable[str]) -> str | None:
        """Begin or resume the run; its address, None offline."""
        recipe = self._recipe
        origin = recipe.ancestor.rpartition("@")[0] if recipe.ancestor else None
        datasets = sorted({short_name(place)[:64] for place in recipe.data.places.values()})
        stage = [f"zero-{self._facts['zero_stage']}"] if "zero_stage" in self._facts else []
        self._run = self._wandb.init(
            mode=mode,
            dir=str(self._folder),
            id=run_id(self._folder),
            resume="allow",
            project=recipe.log.wandb_project,
            name=recipe.name,
            group=Path(origin).name if origin else recipe.name,
            job_type="finetune" if origin else "pretrain",
            tags=[recipe.model.family, recipe.objective.kind, *datasets, *stage],
            config=public({**recipe.model_dump(mode="json"), **self._facts}, keys),
            allow_val_change=True,
            settings=self._wandb.Settings(**self._settings),
        )
        for axis in AXES:
            self._run.define_metric(axis)
        self._run.define_metric("*", step_metric=AXES[0])
        self._run.define_metric("evaluation/valid/loss", step_metric=AXES[0], summary="min")
        return self._run.url if mode == "online" else None

    def do(self, what: str, value: Any) -> None:
        """Log a line, or send an alert."""
        if what == "alert":
            self._run.alert(title=value[0], text=value[1])
            return
        metrics = {name: held for name, held in value.items() if name not in NOT_METRICS and held is not None}
        if value.get("samples"):
            rows = [[value.get(AXES[0]), each.get("prompt"), each.get("text")] for each in value["samples"]]
            metrics["samples"] = self._wandb.Table(columns=["step", "prompt", "text"], data=rows)
        self._run.log(metrics, step=value["line"])

    def finish(self, code: int) -> None:
        """End the run; teardown waits until its file is whole, which offline `finish` alone does not."""
        if code == PREEMPTED:
            self._run.mark_preempting()
        self._run.finish(exit_code=code)
        self._wandb.teardown()

    def drop(self) -> None:
        """Forget a run that failed; without it the next `init` finds its id in use."""
        with contextlib.suppress(BaseException):  # SystemExit, where its service was killed
            self._wandb.teardown()


def run_id(run_folder: Path) -> str:
    """The run's W&B id, kept in wandb/id: all attempts are one W&B run."""
    path = run_folder / "wandb" / "id"
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".id-{os.getpid()}")
        fresh.write_text(secrets.token_hex(5) + "\n", "ascii")
        fresh.replace(path)
        return path.read_text("ascii").strip()


def public(value: Any, hidden: Iterable[str]) -> Any:
    """`value` without the given secrets and without passwords in addresses, at any depth."""
    if isinstance(value, Mapping):
        return {name: public(held, hidden) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [public(held, hidden) for held in value]
    if isinstance(value, str):
        for secret in hidden:
            value = value.replace(secret, "[key]")
        return re.sub(r"(\w+://)[^/@\s]+@", r"\1", value)
    return value


def unreachable(url: str) -> str | None:
    """Why nothing answers at `url`, asked in a few seconds instead of the 16 to 101 that `wandb.init` takes to say so.
    None: something does, or a proxy stands between and can't be judged from here."""
    if urllib.request.getproxies():
        return None
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)), 5).close()
    except OSError as error:
        return f"{parts.hostname} can't be reached ({error.strerror or error})"
    return None


def kill_service() -> None:
    """End the W&B process that this process started: its exit hook would wait for it (measured: 17 s more against a
    server that hangs). What it had written to the run folder stays."""
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text("ascii").split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().startswith("wandb-core"):
                    os.kill(int(child), signal.SIGKILL)
