"""Ports for the servers that tests start."""

import socket


def free_port() -> int:
    """Return a port of loopback that no process listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
