"""Checks of this machine: disks, memory, shared memory, processors and the limit of open files."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cytoray.operations.doctor.findings import Finding, fail, ok, warn

GIB = 2**30
DISK_FAIL_BYTES, DISK_WARN_BYTES = GIB, 10 * GIB
MEMORY_FAIL_BYTES, MEMORY_WARN_BYTES = GIB, 4 * GIB
SHM_SHARE = 0.3  # of memory: Ray's object store by default
MIN_FILES, GOOD_FILES = 1024, 8192
SHM = Path("/dev/shm")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Limits:
    """CPUs and memory of this process: physical, or less by its control group."""

    num_cpus: float
    memory_bytes: int


def check_disk(name: str, path: Path, *, use: str) -> Finding:
    """Look at the space of the disk that a path is on."""
    folder = next(each for each in (path, *path.parents) if each.exists())
    free = shutil.disk_usage(folder).free
    seen = f"{free / GIB:,.1f} GiB free for {use} ({path})"
    remedy = f"Free space there, or put {use} on another disk."
    if free < DISK_FAIL_BYTES:
        return fail(name, seen, remedy=remedy)
    return warn(name, seen, remedy=remedy) if free < DISK_WARN_BYTES else ok(name, seen)


def check_disks(store: Path | None) -> Iterator[Finding]:
    """Look at the disks of Ray's sessions and spilled objects, and of a local store."""
    yield check_disk("disk.tmp", Path(os.environ.get("RAY_TMPDIR", "/tmp")), use="Ray's logs and spilled objects")
    if store is not None:
        yield check_disk("disk.store", store, use="the store")


def check_memory(*, shm: Path = SHM, cgroup: Path = CGROUP) -> Iterator[Finding]:
    """Look at the memory that is left, and at shared memory, which holds Ray's objects."""
    limits = find_limits(cgroup)
    free = min(_meminfo("MemAvailable"), limits.memory_bytes)
    seen = f"{free / GIB:,.1f} of {limits.memory_bytes / GIB:,.1f} GiB available"
    remedy = "Stop other programs, take a larger machine, or lower num_workers and read_concurrency."
    if free < MEMORY_FAIL_BYTES:
        yield fail("memory", seen, remedy=remedy)
    else:
        yield warn("memory", seen, remedy=remedy) if free < MEMORY_WARN_BYTES else ok("memory", seen)
    size = shutil.disk_usage(shm).total if shm.exists() else 0
    wanted = SHM_SHARE * limits.memory_bytes
    seen = f"{shm} has {size / GIB:,.2f} GiB; Ray's object store would take {wanted / GIB:,.2f} GiB"
    if size < wanted:
        remedy = "Start the container with --shm-size, mount an emptyDir of medium Memory at /dev/shm, or pass "
        yield warn("memory.shm", seen, remedy=f"{remedy}--object-store-memory; otherwise objects are kept on disk.")
    else:
        yield ok("memory.shm", seen)


def check_cpus(*, cgroup: Path = CGROUP) -> Iterator[Finding]:
    """Compare the processors of the machine with those that this process may use."""
    limits, here = find_limits(cgroup), os.cpu_count() or 1
    if limits.num_cpus < here:
        whole = max(1, int(limits.num_cpus))
        yield warn(
            "cpus",
            f"{here} CPUs, of which this process may use {limits.num_cpus:g}",
            remedy=f"Start Ray with --num-cpus={whole} and set OMP_NUM_THREADS={whole}, or threads wait for others.",
        )
    else:
        yield ok("cpus", f"{here} CPUs")


def check_files(limit: int | None = None) -> Iterator[Finding]:
    """Look at the limit of open files; Ray opens several for each worker."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    seen = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,} open files"
    remedy = "ulimit -n 65536, LimitNOFILE= of the systemd unit, or nofile in /etc/security/limits.conf."
    if soft == resource.RLIM_INFINITY or soft >= GOOD_FILES:
        yield ok("files", seen)
    else:
        yield fail("files", seen, remedy=remedy) if soft < MIN_FILES else warn("files", seen, remedy=remedy)


def find_limits(cgroup: Path = CGROUP) -> Limits:
    """Return the CPUs and the memory that this process may use, by affinity, control group and machine."""
    cpus = float(len(os.sched_getaffinity(0)))
    quota = _words(cgroup / "cpu.max") or [
        *_words(cgroup / "cpu/cpu.cfs_quota_us"),
        *_words(cgroup / "cpu/cpu.cfs_period_us"),
    ]
    if len(quota) == 2 and quota[0].isdigit():
        cpus = min(cpus, int(quota[0]) / int(quota[1]))
    memory = _meminfo("MemTotal")
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        words = _words(cgroup / file)
        if words and words[0].isdigit():
            memory = min(memory, int(words[0]))
    return Limits(cpus, memory)


def _words(file: Path) -> list[str]:
    """Return the words of a small file; none if it is missing."""
    try:
        return file.read_text().split()
    except OSError:
        return []


def _meminfo(key: str) -> int:
    """Return a figure of /proc/meminfo in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return 0
