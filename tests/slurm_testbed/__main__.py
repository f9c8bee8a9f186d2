"""A Slurm to try things on: `python -m tests.slurm_testbed shell`, or `up` and `down`."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.slurm_testbed.cluster import Cluster, user_name
from tests.slurm_testbed.configuration import Shape
from tests.slurm_testbed.daemons import FILE, TestbedError
from tests.slurm_testbed.loopback import Loopback
from tests.slurm_testbed.namespaced import Namespaced


def main(words: list[str] | None = None) -> int:
    """The command line, or these words of it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm_testbed", description=__doc__)
    parser.add_argument("act", choices=["shell", "up", "down"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / f"luban-slurm-{user_name()}")
    for name, default in vars(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--namespaces", action="store_true", help="each node a network of its own; as root, in a shell")
    asked = parser.parse_args(words)
    shape = Shape(asked.nodes, asked.cpus, asked.gpus, asked.memory_mb)
    try:
        if asked.act == "down":
            _own(asked.folder).down()
        elif asked.act == "shell":
            return _shell((Namespaced if asked.namespaces else Loopback)(asked.folder, shape))
        else:
            if asked.namespaces:
                parser.error("--namespaces goes with shell: from outside, such nodes can't be reached")
            cluster = Loopback(asked.folder, shape)
            cluster.up(bound=False)
            print(f"export SLURM_CONF={cluster.conf}")
    except TestbedError as error:
        print(f"slurm_testbed: {error}", file=sys.stderr)
        return 1
    return 0


def _shell(cluster: Cluster) -> int:
    with cluster:
        print(cluster("sinfo", "-N", "-l"), f"\nLeave the shell, and the cluster in {cluster.folder} is gone.", sep="")
        shell = os.environ.get("SHELL", "/bin/sh")
        return subprocess.run(cluster.words(shell), env=os.environ | cluster.environment).returncode


def _own(folder: Path) -> Cluster:
    """The cluster that this user has brought up there: another's word on what to kill is not taken."""
    if not (folder / FILE).exists():
        raise TestbedError(f"there is no cluster in {folder}")
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise TestbedError(f"the cluster in {folder} is somebody else's")
    return Loopback(folder)


if __name__ == "__main__":
    sys.exit(main())
