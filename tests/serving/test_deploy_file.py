"""The files of `serve deploy` are checked before they reach Ray, and `serve build` works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from ray.serve.schema import ServeDeploySchema
from ray.serve.scripts import build

from cytoray.errors import ConfigError
from cytoray.model.bundle import save_bundle
from cytoray.serving.config import ServeConfig
from cytoray.stages.config import load_stage_config

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "serve").glob("*.yaml"))


def _changed(tmp_path: Path, change: Any) -> Path:
    """A copy of serve/embed.yaml that ``change`` has edited."""
    config = yaml.safe_load((ROOT / "serve" / "embed.yaml").read_text())
    change(config)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_our_files_are_good_for_us_and_for_ray(file: Path) -> None:
    assert load_stage_config(file).kind == "serve deploy"  # type: ignore[attr-defined]
    ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))


MISTAKES: dict[str, tuple[Any, str]] = {
    "misspelt option": (lambda c: c["http_options"].update(hst="x"), r"http_options\.hst: unknown key .*host"),
    "misspelt argument": (lambda c: c["applications"][0]["args"].update(min_replica=0), "did you mean .*min_replicas"),
    "misspelt limit": (lambda c: c["applications"][0]["args"]["limits"].update(max_cell=1), "did you mean .*max_cells"),
    "no host": (lambda c: c["http_options"].pop("host"), r"http_options\.host: this key is required"),
    "overrides of deployments": (lambda c: c["applications"][0].update(deployments=[]), "deployments: unknown key"),
    "another builder": (lambda c: c["applications"][0].update(import_path="a:b"), "import_path"),
    "Serve gives up first": (lambda c: c["http_options"].update(request_timeout_s=60), "would give up before"),
    "open to others": (lambda c: c["http_options"].update(host="0.0.0.0"), r"other machines: set edge\.keys_file"),
    "no application": (lambda c: c.update(applications=[]), "one is expected, got 0"),
    "keys without a file": (lambda c: c["applications"][0]["args"]["edge"].update(auth=True), "keys_file is required"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(tmp_path: Path, name: str) -> None:
    change, message = MISTAKES[name]
    with pytest.raises(ConfigError, match=message):
        load_stage_config(_changed(tmp_path, change))


def test_beyond_loopback_it_is_enough_to_decide(tmp_path: Path) -> None:
    def decide(config: Any) -> None:
        config["http_options"]["host"] = "0.0.0.0"
        config["applications"][0]["args"]["edge"]["auth"] = False

    load_stage_config(_changed(tmp_path, decide))
    for host in ("127.0.0.1", "::1", "localhost"):
        ServeConfig(model_uri="/bundle", host=host)
    for host in ("0.0.0.0", "192.0.2.1", "server.example"):
        with pytest.raises(ValueError, match=r"other machines: set edge\.keys_file"):
            ServeConfig(model_uri="/bundle", host=host)


def test_serve_build_builds_the_application_of_a_file(
    build_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bundle(build_bundle(), tmp_path / "tiny")

    def use_bundle(config: Any) -> None:
        config["applications"][0]["args"] |= {"model_uri": str(tmp_path / "tiny"), "max_replicas": 3}

    monkeypatch.setenv("CYTORAY_SERVE", str(_changed(tmp_path, use_bundle)))
    output = tmp_path / "built.yaml"
    done = CliRunner().invoke(build, ["serve.application:app", "--app-dir", str(ROOT), "-o", str(output)])
    assert done.exit_code == 0, (done.output, done.exception)
    built = yaml.safe_load(output.read_text())
    (application,) = ServeDeploySchema.model_validate(built).applications
    assert application.import_path == "serve.application:app"
    (deployment,) = built["applications"][0]["deployments"]
    assert deployment["autoscaling_config"]["max_replicas"] == 3
    assert (deployment["max_surge_percent"], deployment["max_queued_requests"]) == (100, 64)


def test_serve_build_builds_two_tiers(build_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_bundle(build_bundle(), tmp_path / "tiny")
    config = yaml.safe_load((ROOT / "serve" / "tiered.yaml").read_text())
    for model in config["applications"][0]["args"]["models"]:
        model["model_uri"] = str(tmp_path / "tiny")
    (tmp_path / "tiers.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("CYTORAY_SERVE", str(tmp_path / "tiers.yaml"))
    output = tmp_path / "built.yaml"
    done = CliRunner().invoke(build, ["serve.application:app", "--app-dir", str(ROOT), "-o", str(output)])
    assert done.exit_code == 0, (done.output, done.exception)
    built = yaml.safe_load(output.read_text())
    ServeDeploySchema.model_validate(built)
    deployments = {one["name"]: one for one in built["applications"][0]["deployments"]}
    assert deployments.keys() == {"IngressDeployment", "Model-blood", "Model-blood-next"}
    assert deployments["IngressDeployment"]["num_replicas"] == 2
    assert deployments["Model-blood"]["autoscaling_config"]["max_replicas"] == 4
