"""A cluster file as a batch script: Ray inside one Slurm job, brought up by `ray symmetric-run` on every node.

The first node becomes the head and runs the command; the others serve until it ends. The token is drawn when the job
starts and travels by the environment that Slurm gives to the tasks: it is in no file, no argv and not in the script.
Nodes are taken whole (`--exclusive`), because symmetric-run ends every Ray of the same user on its nodes. For a run
that needs no Ray, `luban pretrain --on slurm` is the shorter way.
"""

from collections.abc import Sequence
from shlex import join, quote

from cluster.provision.cluster_file import Cluster
from data.errors import UserError

WAIT_S = 300
"""How long nodes wait for each other, in seconds; Ray's own 30 are short where a file system is slow to wake."""


def render(cluster: Cluster, command: Sequence[str]) -> str:
    """The text for `sbatch`. Raises UserError where there is no command to run."""
    if not command:
        raise UserError("on Slurm a Ray cluster lives as long as a command: give it at the end, as -- COMMAND ...")
    nodes, slurm = cluster.workers[0], cluster.slurm
    assert cluster.setup.environment
    directives = [
        f"--job-name={cluster.name}",
        f"--nodes={nodes.most}",
        "--ntasks-per-node=1",
        "--exclusive",
        f"--cpus-per-task={nodes.cpus}",
        *([f"--gpus-per-node={nodes.gpus}"] if nodes.gpus else []),
        *([f"--partition={slurm.partition}"] if slurm.partition else []),
        *([f"--account={slurm.account}"] if slurm.account else []),
        *([f"--time={slurm.minutes}"] if slurm.minutes else []),
    ]
    runs = [f"export LUBAN_HOME={cluster.shared.path}"] if cluster.shared else []
    words = [
        *("ray", "symmetric-run", "--address", '"$address:$port"', "--min-nodes", str(nodes.most)),
        *("--num-cpus", str(nodes.cpus), "--num-gpus", str(nodes.gpus or 0), "--disable-usage-stats"),
    ]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {directive}" for directive in directives),
            "set -euo pipefail",
            f"export PATH={quote(cluster.setup.environment)}/bin:$PATH",
            *runs,
            "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN",
            "RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n')",
            f"export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT={WAIT_S}",
            "# The address that Slurm itself uses: a node's name need not resolve on the others.",
            'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "address=$(scontrol show node \"$first\" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')",
            "port=$((20000 + SLURM_JOB_ID % 20000))",
            f"srun {' '.join(words)} -- {join(command)}",
            "",
        ]
    )
