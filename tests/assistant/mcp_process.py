"""The demonstration server of mcp_demo.py in a process of its own."""

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path

DEMO = Path(__file__).with_name("mcp_demo.py")


@contextlib.contextmanager
def demo_server():
    """The address of the demonstration server over HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(DEMO), str(port)], stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


def wait_for(port):
    """Wait until something listens."""
    for _ in range(200):
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.1)
    raise TimeoutError(port)
