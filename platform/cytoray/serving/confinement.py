"""Confine a process that opens files from outside: limits, no plugins of HDF5, and no network.

It needs the standard library only: the sandbox for h5ad bodies loads it by path, without the rest of the package.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from dataclasses import dataclass

#: Environment of such a process: HDF5 loads no plugins with "::"; one thread of arithmetic needs no space for others.
ENVIRONMENT = {
    "HDF5_PLUGIN_PRELOAD": "::",
    "HDF5_PLUGIN_PATH": "",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}
READER_NICENESS = 5
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SECCOMP_SET_MODE_FILTER, _ALL_THREADS = 1, 1
# By machine: the architecture as seccomp names it, and the numbers of seccomp(2) and socket(2).
_CALLS = {"x86_64": (0xC000003E, 317, 41), "aarch64": (0xC00000B7, 277, 198)}
_IO_URING_SETUP, _X32 = 425, 0x40000000
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES


@dataclass(frozen=True)
class Confinement:
    """The limits of a process."""

    memory_bytes: int  # beside what it has when it is confined, if ``beside`` is true, else in all
    cpu_s: int
    output_bytes: int | None = None  # of a file that it writes; None: no limit
    num_files: int = 16
    num_processes: int | None = None  # of this user, threads included; None: no limit
    beside: bool = True
    network: bool = False


def confine(limits: Confinement) -> None:
    """Give up what this process does not need, for good; it ends with the process that started it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    memory = limits.memory_bytes
    if limits.beside:
        memory = _address_space() + memory if _address_space() else resource.RLIM_INFINITY
    kinds = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: limits.cpu_s,
        resource.RLIMIT_NOFILE: limits.num_files,
        resource.RLIMIT_CORE: 0,
    }
    optional = {resource.RLIMIT_FSIZE: limits.output_bytes, resource.RLIMIT_NPROC: limits.num_processes}
    kinds |= {kind: limit for kind, limit in optional.items() if limit is not None}
    for kind, most in kinds.items():
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard) if most != resource.RLIM_INFINITY else hard
        resource.setrlimit(kind, (most, most))
    if not limits.network:
        refuse_sockets()


def confine_reader(*, memory_bytes: int, seconds: float, network: bool) -> None:
    """Confine a process that reads files for a service, and let the model go first; ``memory_bytes``: in all."""
    os.nice(READER_NICENESS)
    confine(Confinement(memory_bytes, int(seconds) + 1, num_files=256, beside=False, network=network))


def refuse_sockets() -> bool:
    """Make socket(2) fail in all threads of this process, without root; returns whether the system can do that."""
    if sys.platform != "linux" or platform.machine() not in _CALLS or sys.maxsize < 2**32:
        return False
    architecture, seccomp, socket = _CALLS[platform.machine()]
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (_LOAD, 0, 0, 4),  # the architecture
            (_IF_EQUAL, 0, 4, architecture),
            (_LOAD, 0, 0, 0),  # the number of the call
            (_IF_EQUAL, 2, 0, socket),
            (_IF_EQUAL, 1, 0, _IO_URING_SETUP),
            (_IF_AT_LEAST, 0, 1, _X32),
            (_RETURN, 0, 0, _REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
    held = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        """``struct sock_fprog``."""

        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    asked = Program(len(program) // 8, ctypes.addressof(held))
    libc = ctypes.CDLL(None)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.syscall(seccomp, _SECCOMP_SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(asked)) == 0)


def _address_space() -> int:
    """Return the bytes of this process's address space; 0 if the system does not say."""
    if not os.path.exists("/proc/self/statm"):
        return 0
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
