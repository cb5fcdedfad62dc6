"""The images: parsed by BuildKit's parser, linted, and their pip lines run in an empty environment.

There is no builder here: no image was ever built by these tests, and lines about apt, users and the GPU were not run.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from image_file import MOUNT, Stage, copied, fill, ignored, parse, problems, read_rules

pytestmark = pytest.mark.infra
ROOT = Path(__file__).parents[2]
FILE = ROOT / "infra" / "docker" / "Dockerfile"
TEXT = FILE.read_text(encoding="utf-8")
OUTSIDE = (
    *(".git/config", ".venv/bin/python", "tests/conftest.py", ".env", "keys.json", "docs/cluster.md"),
    *("infra/kuberay/base/serving.yaml", "platform/cytoray/__pycache__/x.pyc", "serve/explorer/node_modules/x.js"),
)
NOT_LOCKED = ("cytoray", "nvidia-", "triton", "cuda-")  # torch's wheels name these exactly


def hadolint(path: Path) -> str:
    beside = Path(sys.executable).with_name("hadolint")
    found = str(beside) if beside.is_file() else shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is not installed: make setup")
    return subprocess.run([found, "--no-color", path], capture_output=True, text=True, timeout=60).stdout


def test_the_file_is_good():
    assert problems(TEXT, ROOT) == []
    assert hadolint(FILE) == ""


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_both_devices_have_a_stage(device: str):
    arguments, stages = parse(TEXT)
    assert arguments["DEVICE"] == "cpu"
    assert fill(stages[-1].parent, {"DEVICE": device}) in {stage.name for stage in stages}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("USER 1000:1000", "USER ray", "a user with a number"),
        ("USER 1000:1000", "USER 0:0", "a user with a number"),
        ("COPY jobs jobs", "COPY job jobs", "missing file job"),
        ("COPY jobs jobs", "COPY jobs tests jobs", ".dockerignore leaves out: tests"),
        ("COPY jobs jobs", "ADD jobs jobs", "ADD instead of COPY"),
        ("from=wheel,", "from=wheels,", "unknown stage wheels"),
        ("FROM device-${DEVICE}", "FROM devices-${DEVICE}", "unknown stage"),
        ("MPLCONFIGDIR=", "RAY_AUTH_TOKEN=abc MPLCONFIGDIR=", "a secret in ENV"),
        ("--constraint constraints.txt --wheel-dir", "--wheel-dir", "constraints.txt does not lock"),
        (" \\\n    && rm -rf /var/lib/apt/lists/* \\\n    && groupadd", " \\\n    && groupadd", "lists of apt"),
        (
            "RUN apt-get update \\\n    && apt-get install --yes --no-install-recommends libgomp1",
            "RUN apt install libgomp1",
            "DL",
        ),
        ("WORKDIR /opt/cytoray", "WORKDIR opt/cytoray", "DL3000"),
        ("CMD [", "CMDS [", "missing whitespace"),
    ],
)
def test_mistakes_are_caught(old: str, new: str, message: str, tmp_path: Path):
    assert TEXT.count(old) == 1
    mutated = TEXT.replace(old, new)
    (tmp_path / "Dockerfile").write_text(mutated, encoding="utf-8")
    found = [hadolint(tmp_path / "Dockerfile"), *(problems(mutated, ROOT) if "CMDS" not in new else [])]
    assert any(message in problem for problem in found), found


def test_the_context_holds_the_sources_and_nothing_else():
    rules = read_rules(ROOT)
    needed = ["platform/cytoray/__init__.py", "platform/cytoray/pages/explorer/index.html", "jobs/pretrain.py"]
    for path in needed:
        assert (ROOT / path).is_file()
        assert not ignored(path, rules), path
    for path in OUTSIDE:
        assert ignored(path, rules), path


def test_what_pods_run_is_in_the_image():
    assert stat.S_IMODE((ROOT / "infra/docker/leave_cluster.py").stat().st_mode) & 0o111 == 0o111
    _, stages = parse(TEXT)
    targets = {source: target for sources, target in copied(stages[-1]) for source in sources}
    assert targets["infra/docker/leave_cluster.py"] == "/usr/local/bin/leave-cluster"
    base = next(command.original for command in stages[0].commands if command.cmd == "RUN")
    assert re.search(r"\btini\b", base)
    assert re.search(r"\bwget\b", base)


class Scratch:
    """Runs stages in a folder instead of a container: COPY, ENV, WORKDIR, and those RUN lines that only use pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"PATH": f"{folder}/venv/bin:/usr/bin:/bin", "HOME": str(folder / "home")}
        self.environment |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
        self.environment |= {
            "PIP_RETRIES": "1",
            "PIP_DEFAULT_TIMEOUT": "15",
        }  # the index of TORCH_INDEX may be out of reach
        self.work = folder
        self.left_out: list[str] = []

    def inside(self, text: str) -> str:
        """Return a text with the folders of the image replaced by those below the scratch folder."""
        return re.sub(r"(?<![\w.])/(wheels|wheel|src|opt/cytoray)\b", rf"{self.folder}/\1", text)

    def run(self, stage: Stage) -> None:
        for command in stage.commands:
            kind = command.cmd.upper()
            if kind == "WORKDIR":
                self.work = Path(self.inside(command.value[0]))
                self.work.mkdir(parents=True, exist_ok=True)
            elif kind == "ENV":
                self.environment |= {
                    name: value.strip('"') for name, value in zip(command.value[::2], command.value[1::2], strict=True)
                }
            elif kind == "RUN" and "apt-get" in command.original:
                self.left_out.append(command.original)
            elif kind == "RUN":
                self.shell(self.inside(MOUNT.sub("", command.original.removeprefix("RUN").strip())))

    def copy(self, stage: Stage) -> None:
        for command in stage.commands:
            if command.cmd.upper() == "WORKDIR":
                self.work = Path(self.inside(command.value[0]))
        for sources, target in copied(stage):
            for source in sources:
                place = self.work / target / (Path(source).name if target.endswith("/") else "")
                if target in (".", "./"):
                    place = self.work / source
                if target.startswith("/usr/"):
                    place = self.folder / "venv" / "bin" / Path(target).name
                place.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(
                        ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
                    )
                else:
                    shutil.copy(ROOT / source, place)

    def shell(self, line: str) -> str:
        done = subprocess.run(
            ["/bin/bash", "-o", "pipefail", "-c", line],
            cwd=self.work, env=self.environment, capture_output=True, text=True, timeout=800,
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(880)
def test_the_lines_of_the_cpu_image_run_in_an_empty_environment(tmp_path: Path):
    """As the image's stages do: wheels, three installs, files; then the commands that pods and people start."""
    scratch = Scratch(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=100)
    arguments, stages = parse(TEXT)
    by_name = {stage.name: stage for stage in stages}
    for name in ("base", "packages", "wheel", f"device-{arguments['DEVICE']}", "image"):
        scratch.copy(by_name[name])
        scratch.run(by_name[name])
    assert len(scratch.left_out) == 1, "only the line about apt and the user is left out on a CPU"
    place = scratch.shell("cd / && python -c 'import cytoray; print(cytoray.__file__)'")
    assert place.startswith(str(tmp_path / "venv")), "the wheel is what is imported"
    assert "ray, version 2.60" in scratch.shell("ray --version")
    assert "--config" in scratch.shell(f"cd / && PYTHONPATH={tmp_path}/opt/cytoray python -m jobs.pretrain --help")
    assert "--grace-s" in scratch.shell("leave-cluster --help")
    scratch.shell(f"cd {tmp_path}/opt/cytoray && cytoray config check configs/pretrain/human.yaml serve/tiered.yaml")
    installed = scratch.shell("pip freeze")
    locked = {line.lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    pinned = [line for line in installed.lower().splitlines() if "==" in line and not line.startswith(NOT_LOCKED)]
    loose = [line for line in pinned if line.partition("+")[0] not in locked]
    assert loose == [], "packages that the lock does not name"
    assert not {"pytest", "moto", "mypy"} & {line.partition("==")[0] for line in installed.splitlines()}
    mebibytes = int(scratch.shell(f"du -sm {tmp_path}/venv").split()[0])
    print(f"packages of the CPU image: {mebibytes} MiB")
