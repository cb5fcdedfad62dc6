"""The files for `ray up`: valid by Ray's own strict schema and reader, with a token, without open addresses.

No machine was ever started with them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

pytestmark = pytest.mark.infra
ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "infra" / "ray-up").glob("*.yaml"))
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))


def problems(config: dict[str, Any]) -> list[str]:
    """What the schema and our own rules say."""
    errors = jsonschema.Draft7Validator(SCHEMA).iter_errors(config)
    found = [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]
    if found:
        return found
    if config["head_node_type"] not in config["available_node_types"]:
        found.append("unknown head_node_type")
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config[key] if " start " in command]
        if len(starts) != 1 or "RAY_AUTH_MODE=token" not in starts[0]:
            found.append(f"{key}: Ray starts without the token")
    if "--dashboard-host=127.0.0.1" not in " ".join(config["head_start_ray_commands"]):
        found.append("the dashboard listens on all addresses")
    if "~/.ray/auth_token" not in config["file_mounts"]:
        found.append("no token is brought along")
    if not config["provider"].get("use_internal_ips"):
        found.append("machines have public addresses")
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        if (
            node["MetadataOptions"]["HttpTokens"] != "required"
            or not node["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]
        ):
            found.append(f"{name}: rights without a session, or a disk in clear")
    workers = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]
    if not any("InstanceMarketOptions" in kind["node_config"] for kind in workers):
        found.append("no spot machines")
    mounted = [source for source in config["file_mounts"].values() if not source.startswith(("~", "dist/"))]
    found += [f"file_mounts: missing {source}" for source in mounted if not (ROOT / source).exists()]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_file_is_valid(path: Path):
    assert problems(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ray_prepares_it(path: Path):
    """As `ray up` does before it asks the cloud for anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(path.read_text(encoding="utf-8")))
    validate_config(config)
    assert config["available_node_types"]["spot"]["max_workers"] == 8


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("max_workers: 8                  ", "max_worker: 8                  ", "'max_worker' was unexpected"),
        ("  ssh_user: ubuntu", "  ssh_users: ubuntu", "'ssh_users' was unexpected"),
        ("cluster_name: cytoray", "cluster_name: 7", "cluster_name: 7 is not of type 'string'"),
        ("    min_workers: 0\n    max_workers: 8\n    resources: {}                    #",
         "    min_workers: none\n    max_workers: 8\n    resources: {}                    #", "min_workers: 'none'"),
        ("head_node_type: head", "head_node_type: heads", "unknown head_node_type"),
        ("RAY_AUTH_MODE=token ray start --head", "ray start --head", "head_start_ray_commands: Ray starts without"),
        ("RAY_AUTH_MODE=token ray start --address", "RAY_AUTH_MODE=disabled ray start --address", "worker_start_ray"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "the dashboard listens on all addresses"),
        ("  ~/.ray/auth_token: ~", "  ~/.ray/token: ~", "no token is brought along"),
        ("use_internal_ips: true", "use_internal_ips: false", "public addresses"),
        ("HttpTokens: required", "HttpTokens: optional", "rights without a session"),
        ("Encrypted: true", "Encrypted: false", "a disk in clear"),
        ("InstanceMarketOptions: {MarketType: spot}", "Monitoring: {}", "no spot machines"),
        ("  type: aws\n", "", "'type' is a required property"),
    ],
)  # fmt: skip
def test_a_planted_mistake_is_reported(old: str, new: str, problem: str):
    text = (ROOT / "infra" / "ray-up" / "aws.yaml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    found = problems(yaml.safe_load(text.replace(old, new)))
    assert any(problem in each for each in found), found
