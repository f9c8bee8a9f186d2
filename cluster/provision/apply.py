"""Ray clusters brought up and down: `luban cluster up`, `status`, `down`, `render`, `check`.

Hosts, AWS and GCP go through Ray's own launcher, Kubernetes through kubectl and the KubeRay operator. What a cluster
needs lies in clusters/NAME here: the token (mode 600), the file as it was applied, what was rendered of it, and Ray's
state of the nodes. `up` applies exactly what `render` prints, and only after everything that can be checked from here
was: a key, every host, the tools and packages, the configuration by its schema.

With provider local `down` does not use `ray down`, which ends Ray on the head and merely forgets the workers: theirs
would go on for a minute and keep token, key and configuration. Here each host is asked to end Ray and to remove them.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cluster.provision import kuberay, ray_launcher, ray_on_slurm
from cluster.provision.cluster_file import CLOUDS, Cluster, read
from cluster.provision.ssh import Ssh, last_words, write_secret
from data.errors import UserError
from trainer.run import home

JOIN_S = {"local": 300.0, "aws": 900.0, "gcp": 900.0}
"""How long `up` waits for the workers of `min`, in seconds: cloud machines boot, and each node installs torch."""
MODULES = {"aws": "boto3", "gcp": "googleapiclient"}
DASHBOARD = 8265
LAST_LINES = 12
Say = Callable[[str], None]


def render(file: Path, command: Sequence[str] = ()) -> str:
    """What `up` applies, or with a command what runs it on a cluster of its own; valid by its schema.

    Raises:
        UserError: the file is wrong, or its provider knows no command.
    """
    cluster = read(file)
    if _hands_over(command) and cluster.provider in ("slurm", "kubernetes"):
        raise UserError(
            "this command ends as soon as Ray has the run, and the cluster with it: give one that stays, such as -- sh "
            f"-c 'luban pretrain RECIPE name=NAME --on ray=http://127.0.0.1:{DASHBOARD} && luban logs -f NAME'"
        )
    if cluster.provider == "slurm":
        return ray_on_slurm.render(cluster, command)
    if cluster.provider == "kubernetes":
        kuberay.valid(kuberay.manifest(cluster, command))
        return kuberay.render(cluster, command)
    if command:
        raise UserError(
            f"provider {cluster.provider} renders no command: bring it up, then luban pretrain RECIPE --on ray"
        )
    arguments = (cluster, _folder(cluster) / "token", _source(cluster))
    ray_launcher.valid(ray_launcher.config(*arguments))
    return ray_launcher.render(*arguments)


def check(file: Path, crd: Path | None, command: Sequence[str], say: Say) -> None:
    """Render a file and check it by its schema, and by a CRD file where one is given. Raises UserError."""
    render(file, command)
    cluster = read(file)
    if crd is not None:
        if cluster.provider != "kubernetes":
            raise UserError(f"--crd is for provider kubernetes, and {file} has {cluster.provider}")
        kuberay.valid_by_crd(kuberay.manifest(cluster, command), crd)
    say(f"{file} is a cluster of provider {cluster.provider}, and what is rendered for it is valid")


def up(file: Path, wait: bool, restart: bool, say: Say) -> int:
    """Bring a cluster up. One that is up as the file says is left alone, and what runs there with it.

    Args:
        file: the cluster file.
        wait: until the workers of `min` have joined.
        restart: end it first, and everything that runs there.
        say: gets what is done, line by line.

    Returns:
        0, or 1 where the head did not come up, or not all workers joined in time.

    Raises:
        UserError: something is missing or out of reach, and nothing was started; or the cluster is up by another
            text of the file, which only `restart` may replace.
    """
    cluster = read(file)
    _only_with_nodes(cluster)
    text = render(file)
    if cluster.provider == "kubernetes":
        if restart:
            raise UserError("--restart: on Kubernetes, luban cluster down FILE ends a cluster, and up makes it anew")
        say(_kubectl(cluster, "apply", "-f", "-", document=text))
        say(f"the operator brings it up: luban cluster status {file}")
        return 0
    _check_tools(cluster)
    folder = _folder(cluster)
    if restart:
        down(file, say)
    elif _stands(cluster, file, text):
        say(f"cluster {cluster.name} is up already")
        return 0 if not wait or _joined(cluster, file, say) else 1
    folder.parent.mkdir(parents=True, exist_ok=True)  # where the hosts' keys are kept
    if cluster.provider == "local":
        _check_hosts(cluster)
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    if not (folder / "token").exists():
        write_secret(folder / "token", secrets.token_hex(32))
    shutil.copyfile(file, folder / "cluster.yaml")
    (folder / "ray.yaml").write_text(text)
    say(f"cluster {cluster.name}: {1 + sum(kind.least for kind in cluster.workers)} node(s) by {cluster.provider}")
    say(f"  Ray's words go to {folder / 'ray.log'}")
    words = ("up", "--yes", "--no-config-cache", "--disable-usage-stats", "--log-style", "pretty")
    if _ray(cluster, *words, str(folder / "ray.yaml")).returncode:
        say(f"cluster {cluster.name} did not come up; Ray says:\n{_last_of_log(cluster)}")
        say(f"luban cluster down {file} removes what is left of it")
        return 1
    if wait and not _joined(cluster, file, say):
        return 1
    say(_reach(cluster))
    return 0


def status(file: Path, say: Say) -> None:
    """Say which nodes are there, what they have, and how to reach them. Raises UserError where the cluster isn't up."""
    cluster = read(file)
    if cluster.provider == "kubernetes":
        say(_kubectl(cluster, "get", "raycluster,pods", "-l", f"ray.io/cluster={cluster.name}", "-o", "wide"))
        return
    _only_with_nodes(cluster)
    cluster = _applied(cluster)
    if cluster is None:
        raise UserError(f"cluster {read(file).name} is not up: luban cluster up {file}")
    for node in _nodes(cluster):
        say(_described(node))
    say(_reach(cluster))


def down(file: Path, say: Say) -> None:
    """End a cluster and remove what it left on its nodes and here.

    Raises:
        UserError: naming the hosts that could not be reached; what is known of the cluster stays, to try again.
    """
    cluster = read(file)
    if cluster.provider == "kubernetes":
        say(_kubectl(cluster, "delete", "--ignore-not-found", "-f", "-", document=render(file)))
        return
    _only_with_nodes(cluster)
    name, folder = cluster.name, _folder(cluster)
    cluster = _applied(cluster)
    if cluster is None:
        say(f"cluster {name} is not up")
        return
    _check_tools(cluster)
    if cluster.provider == "local":
        _end_hosts(cluster)
    elif _ray(cluster, "down", "--yes", str(folder / "ray.yaml")).returncode:
        raise UserError(
            f"cluster {name} did not go down, and its nodes may still cost money; Ray says:\n{_last_of_log(cluster)}"
        )
    shutil.rmtree(folder)
    say(f"cluster {name} is down")


def _hands_over(command: Sequence[str]) -> bool:
    """Whether it only submits a run to Ray."""
    on = [word for before, word in zip(["", *command], command, strict=False) if before == "--on"]
    on += [word.removeprefix("--on=") for word in command if word.startswith("--on=")]
    return any(word.partition("=")[0] == "ray" for word in on)


def _only_with_nodes(cluster: Cluster) -> None:
    if cluster.provider == "slurm":
        raise UserError(
            "on Slurm a Ray cluster lives as long as its job: luban cluster render FILE -- COMMAND ... | sbatch, then "
            "squeue and scancel"
        )


def _folder(cluster: Cluster) -> Path:
    """What is kept of a cluster here."""
    return home().absolute() / "clusters" / cluster.name


def _applied(cluster: Cluster) -> Cluster | None:
    """The cluster of that name as it was brought up, whatever its file says by now; None where it wasn't."""
    folder = _folder(cluster)
    return read(folder / "cluster.yaml") if (folder / "ray.yaml").exists() else None


def _stands(cluster: Cluster, file: Path, text: str) -> bool:
    """Whether it is up as the file says. Raises UserError where it is up by another text."""
    applied = _applied(cluster)
    if applied is None:
        return False
    try:
        _nodes(applied)
    except UserError:
        return False
    if (_folder(cluster) / "ray.yaml").read_text() != text:
        raise UserError(
            f"cluster {cluster.name} is up, and {file} has changed since: luban cluster up {file} --restart ends what "
            "runs there and applies it"
        )
    return True


def _source(cluster: Cluster) -> Path | None:
    """The copy of Luban that is shipped."""
    if not ray_launcher.ships_source(cluster):
        return None
    source = Path(__file__).resolve().parents[2]
    if missing := [part for part in ray_launcher.SHIPPED if not (source / part).exists()]:
        raise UserError(
            f"this Luban was installed without its source ({missing[0]} is not beside it), so it can't be shipped: set "
            "setup.luban to what pip shall install, or setup.environment to where nodes have it"
        )
    return source


def _check_tools(cluster: Cluster) -> None:
    package = ray_launcher.AUTOSCALER_NEEDS.get(cluster.provider)
    if package and find_spec(MODULES[cluster.provider]) is None:
        raise UserError(f"provider {cluster.provider} needs the package {package}: pip install {package}")
    if shutil.which("rsync") is None:
        raise UserError("there is no rsync here, which Ray's launcher copies files with: install it")
    _ssh(cluster).check()


def _ssh(cluster: Cluster) -> Ssh:
    key = cluster.ssh.key.expanduser() if cluster.ssh.key else None
    return Ssh(cluster.ssh.user, key, _folder(cluster).parent / "known_hosts")


def _hosts(cluster: Cluster) -> list[str]:
    assert cluster.head.host
    return [cluster.head.host, *cluster.workers[0].hosts]


def _check_hosts(cluster: Cluster) -> None:
    without = "there is no rsync, which files are copied with"
    problems = [
        f"{host}: {last_words(done) if done.returncode in (124, 255) else without}"  # these two: it didn't answer
        for host, done in _ssh(cluster).everywhere(_hosts(cluster), "command -v rsync >/dev/null", 30).items()
        if done.returncode
    ]
    if problems:
        raise UserError("not every host is ready, and nothing was started:\n  " + "\n  ".join(problems))


def _end_hosts(cluster: Cluster) -> None:
    """The head first: while it lives, it starts a worker again that has gone."""
    place, name = ray_launcher.home(cluster), cluster.name
    marks = f"{cluster.shared.path}/.luban-{name}" if cluster.shared else ""
    command = (
        f"code=0; ray={ray_launcher.environment(cluster)}/bin/ray; "  # not there where `up` failed early
        'if [ -x "$ray" ]; then "$ray" stop --grace-period 20 >/dev/null 2>&1; code=$?; fi; '
        f"rm -f {place}/token ~/ray_bootstrap_config.yaml ~/ray_bootstrap_key.pem {marks} "
        f"${{RAY_TMPDIR:-/tmp}}/ray/cluster-{name}.state ${{RAY_TMPDIR:-/tmp}}/ray/cluster-{name}.lock; "
        f"rmdir {place} ~/.luban 2>/dev/null; exit $code"
    )
    head, *workers = _hosts(cluster)
    ssh = _ssh(cluster)
    done = ssh.everywhere([head], command) | ssh.everywhere(workers, command)
    problems = [f"{host}: {last_words(end)}" for host, end in done.items() if end.returncode]
    if problems:
        raise UserError(
            "Ray could not be ended everywhere; when these hosts answer, call it again:\n  " + "\n  ".join(problems)
        )


def _ray(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    """What Ray's own command of this environment did, with nothing of it outside the cluster's folder."""
    folder = _folder(cluster)
    (folder / "ray").mkdir(exist_ok=True)
    kept = {name: held for name, held in os.environ.items() if not name.startswith("RAY_")}
    private = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_TMPDIR": str(folder),  # where it keeps its state of the nodes
        "TMPDIR": str(folder / "ray"),  # in /tmp it would leave a copy of the configuration, and trust one it finds
        "RAY_UP_enable_autoscaler_v2": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with (folder / "ray.log").open("a") as log:
        return subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            env=kept | private,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if words[0] == "exec" else log,
            stderr=log,
            text=True,
        )


def _last_of_log(cluster: Cluster) -> str:
    """The end of what Ray said, without its colours."""
    lines = [line for line in _plain((_folder(cluster) / "ray.log").read_text()).splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-LAST_LINES:])


def _plain(text: str) -> str:
    return re.sub("\x1b\\[[0-9;]*m|\r", "", text)


def _on_head(cluster: Cluster, command: str) -> str:
    """What a command prints on the head. Raises UserError where the head isn't reached."""
    marked = f"printf '=%s=\\n' begin; {command}; printf '=%s=\\n' end"  # the words of Ray and ssh come around it
    done = _ray(cluster, "exec", str(_folder(cluster) / "ray.yaml"), marked)
    _, begun, rest = _plain(done.stdout).partition("=begin=")
    if not begun:
        raise UserError(f"the head of cluster {cluster.name} does not answer:\n{_last_of_log(cluster)}")
    return rest.rpartition("=end=")[0].strip()


def _nodes(cluster: Cluster) -> list[dict[str, Any]]:
    """The nodes that are alive, the head first, as Ray's state API describes them.

    Raises:
        UserError: the head isn't reached, or Ray doesn't answer there.
    """
    ray = f"{ray_launcher.environment(cluster)}/bin/ray"
    asked = f"{ray} list nodes --format json --filter state=ALIVE --limit 10000"
    place = f"{ray_launcher.home(cluster)}/said"
    text = _on_head(
        cluster, f"{ray_launcher.authenticated(cluster)}; {asked} 2>{place} || tail -n 1 {place}; rm -f {place}"
    )
    try:
        nodes = json.loads(text)
    except ValueError:
        last = text.splitlines()[-1] if text else "it says nothing"
        raise UserError(f"Ray does not answer on the head of cluster {cluster.name}: {last}") from None
    return sorted(nodes, key=lambda node: (not node["is_head_node"], node["node_ip"]))


def _described(node: dict[str, Any]) -> str:
    has = node["resources_total"]
    role = "head" if node["is_head_node"] else "worker"
    return f"{role:<8}{node['node_ip']:<18}{has.get('CPU', 0):g} CPU  {has.get('GPU', 0):g} GPU"


def _joined(cluster: Cluster, file: Path, say: Say) -> bool:
    """Wait until the head and the workers of `min` are there; False where they aren't in time, with the reason said."""
    wanted, there = 1 + sum(kind.least for kind in cluster.workers), 0
    deadline = time.monotonic() + JOIN_S[cluster.provider]
    while there < wanted:
        if time.monotonic() > deadline:
            log = "/tmp/ray/session_latest/logs/monitor"
            words = _on_head(cluster, f"grep -h ^luban: {log}.out | tail -n 3; tail -n 6 {log}.err")
            say(
                f"{there} of {wanted} nodes are there after {JOIN_S[cluster.provider]:.0f} s. The head says:\n{words}\n"
                f"luban cluster status {file} shows them, luban cluster down {file} ends them"
            )
            return False
        with suppress(UserError):  # a head that has just begun may not answer yet
            nodes = len(_nodes(cluster))
            if nodes != there:
                there = nodes
                say(f"{there} of {wanted} node(s)")
        if there < wanted:
            time.sleep(2)
    return True


def _reach(cluster: Cluster) -> str:
    """How a person reaches the dashboard and submits runs."""
    folder = _folder(cluster)
    key = f"-i {cluster.ssh.key} " if cluster.ssh.key else ""
    tunnel = (
        f"ray dashboard {folder / 'ray.yaml'}"
        if cluster.provider in CLOUDS
        else f"ssh {key}-N -L {DASHBOARD}:127.0.0.1:{DASHBOARD} {cluster.ssh.user}@{cluster.head.host}"
    )
    runs = f"  checkpoint.store={cluster.store}" if cluster.store else ""
    return (
        f"to use it from here, leave this running:\n  {tunnel}\n"
        f"and beside it:\n  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={folder / 'token'}\n"
        f"  luban pretrain RECIPE --on ray=http://127.0.0.1:{DASHBOARD}{runs}"
    )


def _kubectl(cluster: Cluster, *words: str, document: str | None = None) -> str:
    """What kubectl said. Raises UserError where it is missing or fails."""
    if shutil.which("kubectl") is None:
        raise UserError("provider kubernetes needs kubectl: install it, and point it at the cluster's API server")
    done = subprocess.run(
        ["kubectl", "--namespace", cluster.kubernetes.namespace, "--request-timeout=30s", *words],
        input=document,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"kubectl {words[0]} failed: {last_words(done)}")
    return done.stdout.rstrip()
