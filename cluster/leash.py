"""`python -m cluster.leash PID ARGV...`: become another program that is killed as soon as process PID is gone.

A Ray worker has many threads, where a fork that runs Python before its exec may hang; so the rank binds itself.
It is killed, not asked: when a worker is gone, another group is about to begin in the rank's place.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """In a child before it becomes another program: a signal to it when the parent is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def main() -> None:
    """Never returns."""
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it went before the line above
        sys.exit(1)
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main()
