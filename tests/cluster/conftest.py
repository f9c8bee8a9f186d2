"""What the launchers' tests share: a real Slurm of four nodes on this machine."""

from tests.slurm_testbed.fixtures import slurm, slurm_cluster

__all__ = ["slurm", "slurm_cluster"]
