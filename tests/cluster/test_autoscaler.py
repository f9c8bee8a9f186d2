"""The autoscaler with node types that we rendered: nodes come when ranks ask for GPUs, and go when they idle."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.provision.ssh import write_secret

CLUSTER = f"""
name: elastic
provider: aws
aws: {{region: us-west-2}}
image: ami-0123456789abcdef0
store: s3://bucket/luban
head: {{instance: m7i.large, cpus: 1}}
workers:
  - {{name: gpu, instance: g5.12xlarge, cpus: 2, gpus: 2, max: 3, spot: true}}
  - {{name: cpu, instance: m7i.large, cpus: 2, max: 2}}
idle_minutes: 0.05
setup: {{environment: {sys.prefix}}}
"""


@pytest.mark.slow
def test_nodes_come_when_gpus_are_asked_for_and_go_when_idle(tmp_path: Path) -> None:
    file = tmp_path / "elastic.yaml"
    file.write_text(CLUSTER)
    place = tmp_path / ".luban" / "elastic"
    place.mkdir(parents=True)
    write_secret(place / "token", "0" * 64)
    variables = {key: held for key, held in os.environ.items() if not key.startswith("RAY_")} | {
        "HOME": str(tmp_path),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(place / "token"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    # A network and processes of its own: whatever it starts ends with it, and no port of another Ray is in the way.
    alone = ["unshare", "--net", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child", "sh", "-c"]
    script = 'ip link set lo up; mkdir -p /tmp/ray; mount -t tmpfs tmpfs /tmp/ray; "$@"; exit $?'
    done = subprocess.run(
        [*alone, script, "sh", sys.executable, "-P", "-m", "tests.cluster.autoscaled", str(file)],
        env=variables,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(event["asked"], event["nodes"], event["gpus"]) for event in events] == [
        ("nothing", 1, 0),
        ("2 x 2 GPUs", 3, 4),  # of the kind with GPUs, and no third
        ("nothing any more", 1, 0),
    ]
