"""What Slurm reads: slurm.conf, gres.conf and cgroup.conf of a cluster on one machine, as functions of its shape.

Three settings make tests fast, at the price of less patience than a real site has: a requeued job may begin after
cred_expire (5 s, not 120 s), a silent node is down after SlurmdTimeout (6 s, not 300 s) and half the time that it takes
to give a message up (MessageTimeout), and SIGKILL follows SIGTERM after KillWait (10 s, not 30 s). A job of a node that
died runs again after 21 s to 24 s.
"""

from dataclasses import dataclass
from pathlib import Path

DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "console")  # of /dev, where none can be made


@dataclass(frozen=True)
class Shape:
    """What there is of a cluster; every node has the same."""

    nodes: int = 4
    cpus: int = 4
    gpus: int = 2
    memory_mb: int = 4000

    @property
    def names(self) -> list[str]:
        """n1, n2 ..."""
        return [f"n{number + 1}" for number in range(self.nodes)]

    def line(self, where: str) -> str:
        """The nodes in slurm.conf.

        Args:
            where: how they are reached, in slurm.conf's own words.
        """
        return (
            f"NodeName=n[1-{self.nodes}] {where} CPUs={self.cpus} RealMemory={self.memory_mb} "
            f"Gres=gpu:fake:{self.gpus} State=UNKNOWN"
        )


def slurm_conf(folder: Path, user: str, controller: str, port: int, nodes: str) -> str:
    """slurm.conf of a cluster that has `folder` to itself.

    Args:
        user: whom all daemons run as.
        controller: host(address) of slurmctld.
        nodes: the lines on nodes and how they are spoken to.
    """
    return f"""\
ClusterName=luban
SlurmctldHost={controller}
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
SlurmctldSyslogDebug=quiet
SlurmdSyslogDebug=quiet
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=100000,defer_batch
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=6
MessageTimeout=5
KillWait=10
MinJobAge=300
UnkillableStepTimeout=10
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.txt
GresTypes=gpu
MailProg=/bin/true
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=5 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=spot Nodes=ALL MaxTime=INFINITE DefaultTime=5 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
"""


def gres_conf(shape: Shape, devices: list[str]) -> str:
    """gres.conf: the files that stand for a node's GPUs. They must be character devices, or no task sees a GPU."""
    return f"NodeName=n[1-{shape.nodes}] Name=gpu Type=fake File={','.join(devices)}\n"


def cgroup_conf(version: str) -> str:
    """cgroup.conf, under which slurmd starts without cgroups.

    Args:
        version: what `slurmd -V` says. From 23.02 on cgroups can be switched off; before that the plugin of version 1
            is the one that starts on every machine, for nothing here uses it.
    """
    number = tuple(int(part) for part in version.split()[-1].split(".")[:2])
    return f"CgroupPlugin={'disabled' if number >= (23, 2) else 'cgroup/v1'}\n"
