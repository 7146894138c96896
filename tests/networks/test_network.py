"""What keeps the tests from reaching beyond this machine, and with them every workflow that they run."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import run_module

REACH = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"  # an address for documents (RFC 5737)


@pytest.mark.parametrize(
    "start",
    [
        lambda folder: run_module("timeit", ["-n", "1", "-r", "1", REACH], folder, 60).returncode,
        lambda folder: subprocess.run([sys.executable, "-c", REACH], capture_output=True, check=False).returncode,
        lambda folder: subprocess.run(
            [sys.executable, "-c", f"import contextlib\nwith contextlib.suppress(OSError):\n    {REACH}"], check=False
        ).returncode + 1,
    ],
    ids=["a command", "another process", "one that ignores the refusal"],
)  # fmt: skip
def test_a_connection_is_refused_and_noted(start: Callable[[Path], int], tmp_path: Path, refused: Path) -> None:
    assert start(tmp_path) != 0
    assert " 192.0.2.1" in refused.read_text()
    refused.write_text("")


def test_a_name_is_not_asked_for(refused: Path) -> None:
    with pytest.raises(ConnectionRefusedError, match="No test may reach beyond this machine"):
        socket.getaddrinfo("example.org", 443)
    assert "socket.getaddrinfo example.org" in refused.read_text()
    refused.write_text("")


def test_this_machine_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address: Any = server.getsockname()
        socket.create_connection(address, 5).close()
