"""The processes of one run, beside each other on this machine."""

import socket
import subprocess
from collections.abc import Callable


def run_together(count: int, command: Callable[[int, str], list[str]], timeout: float = 300, **options) -> list[str]:
    """command(i, address) is that of process i, and all meet at the address. They have to end well; what each said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command(i, address), **pipes, **options) for i in range(count)]
    try:
        ended = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, "\n".join(error for _, error in ended)
    return [said for said, _ in ended]
