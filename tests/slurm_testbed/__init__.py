"""A real Slurm of several nodes on one machine: munged, slurmctld and a slurmd a node, of Debian's own packages.

Nothing of Slurm is imitated, only the GPUs are: a node's GPUs are character devices that nobody reads, so that jobs
are given them, and see them in CUDA_VISIBLE_DEVICES, as anywhere. Everything lies in one folder, listens on loopback
alone and ends with the cluster; four nodes are idle within 0.5 s to 1.5 s and take 35 MB and 0.3 % of a core.

`Loopback` needs no rights. In `Namespaced`, which needs root, each node has an address, a host name, processes and
mounts of its own, so that a node can crash, or lose its network while its processes live on.

To try Luban on a Slurm on your own machine (`tests/slurm_testbed/install.sh` installs the packages):

    python -m tests.slurm_testbed shell                 a shell in which sbatch, squeue and `luban --on slurm` work
    python -m tests.slurm_testbed up --nodes 2          the same without the shell, until ...
    python -m tests.slurm_testbed down                  ... nothing is left of it
"""
