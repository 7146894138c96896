"""Python imports this at its start where PYTHONPATH names this folder: no connection but to this machine itself.

What is refused is also written to the file that REFUSED_CONNECTIONS names: a library may ignore the refusal.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from typing import Any

_HOST = {"socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0}
_OWN = {"", "localhost", os.uname().nodename if hasattr(os, "uname") else ""}


def _here(host: Any) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    if host is None or host in _OWN:
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _HOST:
        return
    address = arguments[_HOST[event]]
    if event in ("socket.connect", "socket.sendto"):
        if not isinstance(address, tuple):  # a socket of this machine's file system
            return
        address = address[0]
    if _here(address):
        return
    message = f"{' '.join(sys.orig_argv)[:300]}: {event} {address}"
    if "REFUSED_CONNECTIONS" in os.environ:
        with open(os.environ["REFUSED_CONNECTIONS"], "a", encoding="utf-8") as file:  # noqa: PTH123 -- early
            file.write(message + "\n")
    raise ConnectionRefusedError(f"No test may reach beyond this machine: {message}")


sys.addaudithook(_refuse)
