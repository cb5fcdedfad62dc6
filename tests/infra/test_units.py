"""Units and scripts of a single server: verified, hardened, and with each other's names."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from planting import Mistake, load_mistakes

from .conftest import INFRA

pytestmark = pytest.mark.infra
HERE = INFRA / "single-server"
MISTAKES = load_mistakes(Path(__file__).parent / "unit_mistakes.yaml")
YES = (
    "NoNewPrivileges", "ProtectHome", "PrivateTmp", "ProtectKernelModules", "ProtectControlGroups", "RestrictSUIDSGID",
    "LockPersonality",
)  # fmt: skip
HARDENING = {**dict.fromkeys(YES, "yes"), "CapabilityBoundingSet": "", "ProtectSystem": "strict", "UMask": "0077"}


def verify(folder: Path) -> str:
    """What systemd-analyze has to say about the units; nothing if they are good."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    units = sorted(map(str, folder.iterdir()))
    done = subprocess.run([program, "verify", *units], capture_output=True, text=True, timeout=120)
    lines = (done.stdout + done.stderr).splitlines()
    return "\n".join(line for line in lines if "cytoray" in line)


def check_hardening(folder: Path) -> None:
    """No unit runs as root or gets rights, a secret in an argument or in its settings, or a port beyond loopback."""
    for path in sorted(folder.glob("*.service")):
        unit = read_unit(path)
        service = unit["Service"]
        assert service["User"].startswith("cytoray"), path.name
        assert {name: service.get(name) for name in HARDENING} == HARDENING, path.name
        credentials = re.findall(r"^LoadCredential=([\w-]+):/etc/cytoray/secrets/\1$", path.read_text(), re.MULTILINE)
        assert len(credentials) == path.read_text().count("LoadCredential="), path.name
        script = Path(service["ExecStart"].split()[-1].replace("/opt/cytoray/infra", str(INFRA)))
        assert script.is_file(), script
        wanted = set(re.findall(r'\$SECRETS/([\w-]+)"', script.read_text()))
        assert wanted == set(credentials), f"{path.name} loads {credentials}, {script.name} reads {wanted}"


def read_unit(path: Path) -> configparser.ConfigParser:
    """Read a unit; names may repeat, of which the last counts."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


def test_systemd_accepts_the_units() -> None:
    assert verify(HERE / "units") == ""


def test_units_are_hardened_and_load_the_secrets_that_their_scripts_read() -> None:
    check_hardening(HERE / "units")


@pytest.mark.parametrize("mistake", MISTAKES["systemd"], ids=str)
def test_systemd_catches_planted_mistakes(mistake: Mistake, tmp_path: Path) -> None:
    shutil.copytree(HERE / "units", tmp_path / "units")
    mistake.plant(tmp_path)
    assert mistake.caught in verify(tmp_path / "units")


@pytest.mark.parametrize("mistake", MISTAKES["hardening"], ids=str)
def test_weaker_units_are_caught(mistake: Mistake, tmp_path: Path) -> None:
    shutil.copytree(HERE / "units", tmp_path / "units")
    mistake.plant(tmp_path)
    with pytest.raises(AssertionError, match=re.escape(mistake.caught)):
        check_hardening(tmp_path / "units")


def test_scripts_parse_and_settings_are_complete() -> None:
    scripts = [*HERE.glob("*.sh"), *(INFRA / "mlflow").glob("*.sh"), *(INFRA / "terraform").glob("*.sh")]
    assert len(scripts) == 6
    settings = (HERE / "server.env").read_text()
    named = set(re.findall(r"^(\w+)=", settings, re.MULTILINE)) | {"SECRETS", "RUNTIME"}
    for script in scripts:
        subprocess.run(["sh", "-n", str(script)], check=True, timeout=10)
        if script.name.startswith("start_"):
            needed = set(re.findall(r'"\$\{(\w+):\?\}"', script.read_text()))
            assert needed <= named, f"{script.name} needs {needed - named}"
    addresses = re.findall(r"(\d+\.\d+\.\d+\.\d+)", settings)
    assert set(addresses) == {"127.0.0.1"}


def test_mlflow_of_all_places_is_one_version() -> None:
    (wanted,) = re.findall(r"^mlflow==(\S+)$", (INFRA.parent / "constraints.txt").read_text(), re.MULTILINE)
    (server,) = re.findall(
        r"^mlflow\[auth\]==(\S+)$", (INFRA / "mlflow" / "requirements.txt").read_text(), re.MULTILINE
    )
    image = yaml.safe_load((INFRA / "mlflow" / "kustomization.yaml").read_text())["images"][0]["newTag"]
    assert wanted == server == image.rpartition("-")[0]
