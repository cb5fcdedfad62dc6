"""Processes that open files from outside have no network, no plugins of HDF5 and bounded memory, without root."""

from __future__ import annotations

import asyncio
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cytoray.errors import CorpusError
from cytoray.serving import confinement
from cytoray.serving.explorer.child import run_child

LINUX = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
TRY = """
import importlib.util, socket, sys, threading
spec = importlib.util.spec_from_file_location("confinement", sys.argv[1])
sys.modules["confinement"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
started, tried = threading.Event(), []
def connect():
    started.wait()
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        try:
            socket.socket(family)
            tried.append("open")
        except PermissionError:
            tried.append("refused")
thread = threading.Thread(target=connect)  # of before: all threads are confined
thread.start()
module.confine(module.Confinement(memory_bytes=64 * 2**20, cpu_s=20, network=sys.argv[2] == "yes"))
started.set()
thread.join()
try:
    bytearray(256 * 2**20)
    tried.append("allocated")
except MemoryError:
    tried.append("too much")
print(*tried)
"""


@pytest.mark.skipif(not LINUX, reason="seccomp is Linux's")
@pytest.mark.parametrize(("network", "wanted"), [("no", "refused"), ("yes", "open")])
def test_sockets_are_refused_and_memory_is_bounded(network: str, wanted: str) -> None:
    command = [sys.executable, "-I", "-c", TRY, str(confinement.__file__), network]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [wanted, wanted, wanted, "too", "much"], done.stderr


MODULE = """
import os, socket
from cytoray.errors import CorpusError
from cytoray.serving.explorer.child import child_main

def work(folder, options, report):
    report({"plugins": os.environ["HDF5_PLUGIN_PATH"]})
    try:
        socket.socket()
    except PermissionError:
        raise CorpusError("no network") from None

child_main(work)
"""


@pytest.mark.skipif(not LINUX, reason="seccomp is Linux's")
def test_the_explorers_processes_have_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trying.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    seen: list[dict[str, object]] = []

    def run(uri: str) -> None:
        limits = {"max_memory_bytes": 4 * 2**30, "max_step_s": 60}
        asyncio.run(run_child("trying", tmp_path, report=seen.append, uri=uri, **limits))

    with pytest.raises(CorpusError, match="no network"):
        run("/tmp/upload")
    run("s3://bucket/demo.h5ad")  # chosen by the operator
    assert seen[0] == {"plugins": ""}
