"""Luban's command line where a Ray testbed is."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import CommandLine
from tests.ray_testbed.cluster import RayCluster


class OnCluster(CommandLine):
    """`luban` in the cluster's namespace, with its token."""

    def __init__(self, home: Path, cluster: RayCluster):
        super().__init__(home)
        self.cluster = cluster
        self.environment = cluster.environment() | {"LUBAN_HOME": str(home)}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.cluster.inside(sys.executable, "-P", "-m", "luban", *words), cwd=self.home, env=self.environment,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
