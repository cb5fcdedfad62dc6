"""Sum a tensor over processes: two by gloo on the CPU, or one for each GPU by NCCL; as training does.

``python -m cytoray.operations.doctor.collective BACKEND RANK SIZE PORT`` is one process; rank 0 prints JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta

from cytoray.operations.doctor.findings import Finding, fail, ok, warn

NUM_FLOATS = {"gloo": 2**18, "nccl": 2**24}
ROUNDS = 5
NUM_CPU_PROCESSES = 2
STDERR_LINES = 3


def check_gpus() -> Iterator[Finding]:
    """List the GPUs and their driver."""
    names, problem = find_gpus()
    if problem:
        yield fail(
            "gpu", problem, remedy="Install the driver that belongs to the kernel, or restart; nvidia-smi must work."
        )
    elif names:
        yield ok("gpu", f"{len(names)}: {names[0]}")
    else:
        yield ok("gpu", "none; training and serving use the CPU")


def check_all_reduce(*, limit_s: float) -> Iterator[Finding]:
    """Sum over processes: NCCL if there are GPUs, else gloo."""
    names, _ = find_gpus()
    backend, size = ("nccl", len(names)) if names else ("gloo", NUM_CPU_PROCESSES)
    yield run_all_reduce(backend, size, limit_s=limit_s)


def find_gpus() -> tuple[list[str], str]:
    """Return name and driver of each GPU, and what is wrong if they cannot be listed."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], ""
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi: {error}"
    if done.returncode:
        return [], f"nvidia-smi: {(done.stdout + done.stderr).strip().splitlines()[-1]}"
    return [line.replace(", ", ", driver ") for line in done.stdout.splitlines() if line.strip()], ""


def run_all_reduce(backend: str, size: int, *, limit_s: float) -> Finding:
    """Start the processes and judge their sum; all have ended afterwards."""
    name, where = "all_reduce", f"{backend}, {size} process{'es' if size > 1 else ''}"
    remedy = "Name the network interface (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME); processes must reach all ports."
    if backend == "nccl":
        remedy += " NCCL_DEBUG=INFO shows more; torch must be built for the CUDA of the driver."
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cytoray.operations.doctor.collective", backend]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    deadline = time.monotonic() + limit_s
    processes: list[subprocess.Popen[str]] = []
    try:
        for rank in range(size):
            words = [*command, str(rank), str(size), str(port)]
            processes.append(
                subprocess.Popen(words, text=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            )
        outputs = [process.communicate(timeout=max(0.1, deadline - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired:
        return warn(name, f"{where}: not done after {limit_s:.0f} s", remedy=f"Try again on an idle machine. {remedy}")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode:
            lines = " / ".join(errors.strip().splitlines()[-STDERR_LINES:])
            return fail(name, f"{where}: {lines or f'exit code {process.returncode}'}", remedy=remedy)
    found = json.loads(outputs[0][0])
    expected = sum(range(1, size + 1))
    if found["sum"] != expected:
        return fail(name, f"{where}: {found['sum']} instead of {expected}", remedy=remedy)
    return ok(name, f"{where}: {found['seconds'] * 1000:.1f} ms for {found['num_bytes'] / 2**20:.0f} MiB")


def main() -> None:
    """Run one process."""
    backend, rank, size, port = sys.argv[1], *map(int, sys.argv[2:5])
    import torch
    import torch.distributed as dist

    if any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size, timeout=timedelta(seconds=30)
    )
    tensor = torch.empty(NUM_FLOATS[backend], device=device)
    times = []
    for _ in range(ROUNDS):
        tensor.fill_(rank + 1)
        started = time.perf_counter()
        dist.all_reduce(tensor)
        total = float(tensor[-1])  # waits for the device
        times.append(time.perf_counter() - started)
    if rank == 0:
        print(json.dumps({"sum": total, "seconds": min(times), "num_bytes": tensor.numel() * 4}))  # noqa: T201
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
