"""Terraform with its provider from a local mirror; skips with a reason if one of them is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

INFRA = Path(__file__).parents[2] / "infra"
TIMEOUT_S = 600  # seconds; a validate takes two, on a busy machine a minute
MIRROR = Path("/opt/tf-plugins")


@dataclass(frozen=True)
class Terraform:
    """The program, and a copy of infra/terraform without its backend that is initialised; nobody changes it."""

    program: str
    clean: Path

    def copy(self, folder: Path) -> Path:
        """Copy what is initialised into ``folder``, where mistakes can be planted; the provider stays a link."""
        shutil.copytree(self.clean, folder, symlinks=True)
        return folder

    def run(self, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in ``folder``; both streams are in ``stdout``."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "AWS_"))}
        environment |= {"TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1", "TF_CLI_CONFIG_FILE": os.devnull}
        return subprocess.run(
            [self.program, *words, *(() if words[0] == "fmt" else ("-no-color",))],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip


@pytest.fixture(scope="session")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    program = shutil.which("terraform")
    if program is None:
        pytest.skip("terraform is not installed")
    plugins = Path(os.environ.get("TF_PLUGIN_DIR") or MIRROR)
    if not plugins.is_dir():
        pytest.skip("TF_PLUGIN_DIR names no folder with hashicorp/aws: no provider to check against")
    found = Terraform(program, tmp_path_factory.mktemp("terraform") / "clean")
    ignored = shutil.ignore_patterns(".terraform*", "backend.tf", "*.tfstate*", "*.tfvars")
    shutil.copytree(INFRA / "terraform", found.clean, ignore=ignored)
    done = found.run(found.clean, "init", f"-plugin-dir={plugins}", "-input=false", "-backend=false")
    assert done.returncode == 0, done.stdout
    return found


@pytest.fixture(scope="session")
def promtool() -> str:
    program = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: `make check-infra` fetches it")
    return program
