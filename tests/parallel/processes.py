"""Several processes on this machine that work together, as torchrun would start them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path


def run_together(world: int, script: Path, folder: Path, *arguments: str, seconds: float = 400) -> tuple[int, str]:
    """Run ``script FOLDER ARGUMENTS`` in ``world`` processes to the end; when one fails, the others are ended.

    The worst exit status, and what all have said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    logs = [folder / f"rank-{rank}.log" for rank in range(world)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as stream:
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, str(script), str(folder), *arguments]
            processes.append(subprocess.Popen(command, env=environment, stdout=stream, stderr=stream))
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes) or time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    return max(abs(process.returncode) for process in processes), "".join(log.read_text() for log in logs)
