"""Candidate, champion, previous: what passes takes over, what fails changes nothing, and there is always a champion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cytoray.cli.main import main
from cytoray.errors import RegistryError
from cytoray.failpoints import VARIABLE
from cytoray.registry.gate import GateConfig
from cytoray.registry.models import list_versions, register
from cytoray.registry.promotion import promote_version, roll_back
from cytoray.tracking.server import connect

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
NAME = "annotator"
PROMOTE = f"""\
import sys
from pathlib import Path
from cytoray.registry.models import register
from cytoray.tracking import TrackingConfig
tracking = TrackingConfig(uri=sys.argv[1], journal_folder=sys.argv[2])
register(Path(sys.argv[3]), name="{NAME}", tracking=tracking, alias="champion")
"""


def held(tracking) -> dict[str, int]:
    """Which version has each alias."""
    return {alias: version.version for version in list_versions(NAME, tracking=tracking) for alias in version.aliases}


def promote_until_killed(tracking, folder: Path, point: str) -> None:
    """Register and promote in a process that dies at the failpoint."""
    command = [sys.executable, "-c", PROMOTE, tracking.uri, tracking.journal_folder, str(folder)]
    environment = {**os.environ, VARIABLE: f"{point}=kill"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == -9, done.stderr[-3000:]


def tags(tracking, version: int) -> dict[str, str]:
    found = connect(tracking.uri).get_model_version(NAME, str(version)).tags
    return {key: value for key, value in found.items() if key.startswith("cytoray.gate")}


@pytest.fixture
def write_scores(tmp_path):
    """Write a scores file with one metric; its path."""

    def write(score: float, **more) -> str:
        path = tmp_path / f"scores-{score}.json"
        rows = {"cytoray": {"macro_f1": score}, "majority class": {"macro_f1": 0.1}}
        path.write_text(json.dumps({"scores": rows, "digests": more} if more else rows))
        return str(path)

    return write


def test_what_passes_its_gate_becomes_champion_with_its_scores_and_what_fails_stays_candidate(
    tracking, make_bundle, write_scores
):
    asked = {"metric": "macro_f1", "beats": ("majority class",), "not_below_champion": True}
    first = register(make_bundle(1), name=NAME, tracking=tracking)
    gate = GateConfig(scores=write_scores(0.625), **asked)
    promoted = promote_version(first, tracking=tracking, gate=gate)
    assert (promoted.version, promoted.aliases) == (1, ("champion",))
    kept = tags(tracking, 1)
    assert kept["cytoray.gate.macro_f1"] == "0.625"
    assert kept["cytoray.gate.macro_f1.majority_class"] == "0.1"
    assert len(kept["cytoray.gate_scores_digest"]) == 64

    second = register(make_bundle(2), name=NAME, tracking=tracking)
    worse = GateConfig(scores=write_scores(0.5), at_least=0.6, **asked)
    with pytest.raises(RegistryError) as caught:
        promote_version(second, tracking=tracking, gate=worse)
    assert caught.value.exit_code == 3
    for told in ("stays a candidate, and version 1 keeps the alias champion", "macro_f1 0.5 is not at least 0.6",
                 "macro_f1 0.5 is worse than the 0.625 of version 1", "Promote a better model"):  # fmt: skip
        assert told in str(caught.value)
    assert held(tracking) == {"champion": 1, "candidate": 2}
    assert tags(tracking, 2) == {}

    tolerant = GateConfig(scores=write_scores(0.5), tolerance=0.125, **asked)
    assert promote_version(second, tracking=tracking, gate=tolerant).aliases == ("champion",)
    assert held(tracking) == {"previous": 1, "champion": 2}
    assert tags(tracking, 2)["cytoray.gate.macro_f1"] == "0.5"


def test_scores_of_another_bundle_are_refused_and_those_of_this_one_are_not(tracking, make_bundle, write_scores):
    version = register(make_bundle(1), name=NAME, tracking=tracking)
    other = GateConfig(scores=write_scores(0.9, bundle="ab" * 32), metric="macro_f1", at_least=0.5)
    with pytest.raises(RegistryError, match="belongs to the bundle abababab"):
        promote_version(version, tracking=tracking, gate=other)
    assert held(tracking) == {"candidate": 1}
    ours = GateConfig(scores=write_scores(0.9, bundle=version.digest), metric="macro_f1", at_least=0.5)
    assert promote_version(version, tracking=tracking, gate=ours).aliases == ("champion",)


def test_a_champion_without_a_score_is_promoted_once_more_to_get_one(tracking, make_bundle, write_scores):
    champion = register(make_bundle(1), name=NAME, tracking=tracking, alias="champion")
    candidate = register(make_bundle(2), name=NAME, tracking=tracking)
    gate = GateConfig(scores=write_scores(0.9), metric="macro_f1", not_below_champion=True)
    with pytest.raises(RegistryError, match="version 1 was promoted without macro_f1"):
        promote_version(candidate, tracking=tracking, gate=gate)
    own = GateConfig(scores=write_scores(0.8), metric="macro_f1", not_below_champion=True)
    promote_version(champion, tracking=tracking, gate=own)
    assert held(tracking) == {"champion": 1, "candidate": 2}  # nothing moved
    assert promote_version(candidate, tracking=tracking, gate=gate).aliases == ("champion",)


def test_promoting_the_champion_again_changes_no_alias(tracking, make_bundle):
    folders = [make_bundle(seed) for seed in (1, 2, 3)]
    register(folders[0], name=NAME, tracking=tracking, alias="champion")
    register(folders[1], name=NAME, tracking=tracking, alias="champion")
    register(folders[2], name=NAME, tracking=tracking)
    before = held(tracking)
    assert before == {"previous": 1, "champion": 2, "candidate": 3}
    register(folders[1], name=NAME, tracking=tracking, alias="champion")
    assert held(tracking) == before


def test_another_alias_than_champion_leaves_previous_alone(tracking, make_bundle):
    register(make_bundle(1), name=NAME, tracking=tracking, alias="staging")
    register(make_bundle(2), name=NAME, tracking=tracking, alias="staging")
    assert held(tracking) == {"staging": 2}


@pytest.mark.faults
@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("register.before_alias", {"previous": 1, "champion": 2, "candidate": 3}),
        ("register.after_previous", {"previous": 2, "champion": 2, "candidate": 3}),
        ("register.after_alias", {"previous": 2, "champion": 3, "candidate": 3}),
    ],
)
def test_a_kill_while_aliases_move_leaves_a_champion_and_a_rerun_finishes(tracking, make_bundle, point, left):
    folders = [make_bundle(seed) for seed in (1, 2, 3)]
    for folder in folders[:2]:
        register(folder, name=NAME, tracking=tracking, alias="champion")
    promote_until_killed(tracking, folders[2], point)
    assert held(tracking) == left
    assert register(folders[2], name=NAME, tracking=tracking, alias="champion").version == 3
    assert held(tracking) == {"previous": 2, "champion": 3}
    assert [version.version for version in list_versions(NAME, tracking=tracking)] == [1, 2, 3]


@pytest.mark.faults
@pytest.mark.parametrize("then", ["the old champion is promoted instead", "it is rolled back"])
def test_the_real_previous_is_not_lost_when_a_killed_promotion_is_given_up(tracking, make_bundle, then):
    folders = [make_bundle(seed) for seed in (1, 2, 3)]
    for folder in folders[:2]:
        register(folder, name=NAME, tracking=tracking, alias="champion")
    promote_until_killed(tracking, folders[2], "register.after_previous")
    if then == "it is rolled back":
        now, before = roll_back(NAME, tracking=tracking)
        assert (now.version, before.version) == (1, 2)
        assert held(tracking) == {"previous": 2, "champion": 1, "candidate": 3}
    else:
        register(folders[1], name=NAME, tracking=tracking, alias="champion")
        assert held(tracking) == {"previous": 1, "champion": 2, "candidate": 3}


def rollback_command(tracking, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cytoray", "models", "rollback", NAME, "--uri", tracking.uri])
    main()


def test_rollback_swaps_champion_and_previous_and_says_both(tracking, make_bundle, monkeypatch, capsys):
    old = register(make_bundle(1), name=NAME, tracking=tracking, alias="champion")
    new = register(make_bundle(2), name=NAME, tracking=tracking, alias="champion")
    with pytest.raises(SystemExit) as ended:
        rollback_command(tracking, monkeypatch)
    assert not ended.value.code
    said = capsys.readouterr().out.splitlines()
    assert said == [f"champion  {NAME}/1  {old.digest[:16]}", f"previous  {NAME}/2  {new.digest[:16]}"]
    assert held(tracking) == {"champion": 1, "previous": 2}
    roll_back(NAME, tracking=tracking)
    assert held(tracking) == {"champion": 2, "previous": 1}


def test_rollback_without_a_way_back_is_exit_code_2_with_a_remedy(tracking, make_bundle, monkeypatch, capsys):
    folder = make_bundle(1)
    for alias, told in ((None, "has no champion"), ("champion", "has no previous champion to roll back to")):
        register(folder, name=NAME, tracking=tracking, alias=alias)
        with pytest.raises(SystemExit) as ended:
            rollback_command(tracking, monkeypatch)
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert told in error
        assert "cytoray models ls" in error
    assert held(tracking) == {"champion": 1}


def test_the_stage_registers_asks_the_gate_and_tells_what_became_of_it(tracking, make_bundle, write_scores, tmp_path):
    from cytoray.stages.config import PromoteConfig
    from cytoray.stages.find import find_stage

    config = PromoteConfig(store=str(tmp_path), model=str(make_bundle(1)), tracking=tracking, name=NAME)
    told = find_stage("promote")(config.model_copy(update={"alias": "candidate"}))
    assert (told["model"], told["version"], told["aliases"]) == (f"models:/{NAME}@candidate", 1, ["candidate"])
    gate = GateConfig(scores=write_scores(0.5), metric="macro_f1", at_least=0.6)
    with pytest.raises(RegistryError, match="no version has the alias champion"):
        find_stage("promote")(config.model_copy(update={"gate": gate}))
    assert held(tracking) == {"candidate": 1}
    told = find_stage("promote")(config)
    assert (told["model"], told["version"], told["aliases"]) == (f"models:/{NAME}@champion", 1, ["champion"])


def test_any_alias_goes_back_to_the_version_that_had_it(tracking, make_bundle):
    for seed in (1, 2):
        register(make_bundle(seed), name=NAME, tracking=tracking, alias="challenger")
    for expected in (1, 2):
        now, before = roll_back(NAME, tracking=tracking, alias="challenger")
        assert (now.version, before.version) == (expected, 3 - expected)
        assert "challenger" in now.aliases
    with pytest.raises(RegistryError, match="has no canary"):
        roll_back(NAME, tracking=tracking, alias="canary")
