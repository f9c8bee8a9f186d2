"""A port that is free now: a fresh one for each life, so that it never meets what is left of the one before."""

import socket


def free_port(address: str = "127.0.0.1") -> int:
    """Of this machine, at one of its addresses. Another process may take it in between: that life is then a fault."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]
