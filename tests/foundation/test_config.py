"""Every mistake in a configuration is told at once, with file, line, key path and what was probably meant."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import ClassVar, Literal

import pydantic
import pytest
from pydantic import Field

import cytoray
from cytoray.config import Config, Location, load_config
from cytoray.errors import ConfigError


class Optimizer(Config):
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(0, ge=0)
    schedule: Literal["cosine", "linear"] = "cosine"


class Train(Config):
    num_steps: int = Field(gt=0)
    optimizer: Optimizer = Optimizer()


class Source(Config):
    uri: str
    matrix: str = "X"


class Job(Config):
    places: ClassVar[frozenset[str]] = frozenset({"store"})

    name: str
    store: Location = "."
    train: Train
    sources: tuple[Source, ...] = ()
    backup: Source | None = None


GOOD = """\
name: demo
train:
  num_steps: 20
  optimizer:
    learning_rate: 0.1
"""


def mistakes(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(Job, path, overrides=overrides)
    assert "config check" in caught.value.remedy
    lines = caught.value.details["mistakes"]
    assert all(line in str(caught.value) for line in lines)
    return lines


def problem(path: str, *overrides: str) -> str:
    """The message of a mistake that stands alone, because nothing after it can be checked."""
    with pytest.raises(ConfigError) as caught:
        load_config(Job, path, overrides=overrides)
    assert caught.value.remedy
    return caught.value.problem


def test_values_come_from_the_file_and_defaults_from_the_class(write):
    job = load_config(Job, write(GOOD))
    assert job.model_dump() == {
        "name": "demo",
        "store": str(Path().absolute()),
        "train": {
            "num_steps": 20,
            "optimizer": {"learning_rate": 0.1, "warmup": 0, "schedule": "cosine"},
        },
        "sources": (),
        "backup": None,
    }
    again = load_config(Job, write(job.to_yaml(), "again.yaml"))
    assert again == job


def test_three_mistakes_are_told_at_once_with_line_key_path_and_suggestion(write):
    path = write(
        "# a comment\nname: demo\ntrain:\n  num_steps: many\n\n  optimizer:\n    learning_rat: 0.1\n    warmup: -3\n"
    )
    assert sorted(mistakes(path)) == [
        'job.yaml:4: train.num_steps: Input should be a valid integer, got "many"',
        "job.yaml:7: train.optimizer.learning_rat: unknown key (did you mean train.optimizer.learning_rate?)",
        "job.yaml:8: train.optimizer.warmup: Input should be greater than or equal to 0, got -3",
    ]


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ("warmup: 3\n", "job.yaml:6: warmup: unknown key (did you mean train.optimizer.warmup?)"),
        ("zzz: 3\n", "job.yaml:6: zzz: unknown key (valid here: backup, name, sources, store, train)"),
        ("sources:\n- uri: x\n- {matrx: X, uri: y}\n", "job.yaml:8: sources.1.matrx: unknown key (did you mean sources.1.matrix?)"),  # noqa: E501
        ("backup:\n  uri: x\n  matrx: X\n", "job.yaml:8: backup.matrx: unknown key (did you mean backup.matrix?)"),
        ("backup:\n  matrix: X\n", "job.yaml:6: backup.uri: this key is required and has no default"),
        ("sources: 3\n", "job.yaml:6: sources: Input should be a valid array, got 3"),
    ],
)  # fmt: skip
def test_one_mistake_is_told_where_it_was_written(write, extra: str, told: str):
    assert mistakes(write(GOOD + extra)) == [told]


def test_a_wrong_choice_gets_the_nearest_one(write):
    (told,) = mistakes(write(GOOD + "    schedule: cosinus\n"))
    assert told.startswith("job.yaml:6: train.optimizer.schedule: ")
    assert "'cosine' or 'linear'" in told
    assert told.endswith("(did you mean 'cosine'?)")


@pytest.mark.parametrize(
    ("line", "wrong"),
    [("num_steps: '20'", "num_steps"), ("num_steps: 20.5", "num_steps"), ("num_steps: yes", "num_steps")],
)
def test_nothing_is_converted_silently(write, line: str, wrong: str):
    (told,) = mistakes(write(f"name: demo\ntrain:\n  {line}\n"))
    assert f"job.yaml:3: train.{wrong}: " in told


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("5E+3", 5e3), ("1.5e2", 150.0), (".5e1", 5.0), ("3", 3.0), ("0.25", 0.25)]
)
def test_floats_may_be_written_with_an_exponent(write, text: str, value: float):
    path = write(f"name: 1e4x\ntrain:\n  num_steps: 1\n  optimizer:\n    learning_rate: {text}\n")
    job = load_config(Job, path)
    assert job.train.optimizer.learning_rate == value
    assert job.name == "1e4x"
    assert load_config(Job, path, overrides=[f"train.optimizer.learning_rate={text}"]) == job


def test_overrides_change_add_and_keep(write):
    path = write(GOOD)
    job = load_config(
        Job,
        path,
        overrides=["train.num_steps=7", "train.optimizer.warmup=2", "backup.uri=s3://b/x", "sources=[{uri: a=b}]"],
    )
    assert (job.train.num_steps, job.train.optimizer.warmup, job.train.optimizer.learning_rate) == (7, 2, 0.1)
    assert job.backup == Source(uri="s3://b/x")
    assert job.sources == (Source(uri="a=b"),)
    assert load_config(Job, path, overrides=["train.num_steps=7", "train.num_steps=8"]).train.num_steps == 8


def test_mistakes_in_overrides_are_told_as_such(write):
    path = write(GOOD)
    assert sorted(mistakes(path, "train.num_step=3", "train.optimizer.warmup=-1", "optimiser.warmup=3")) == [
        "--set optimiser.warmup: optimiser: unknown key (valid here: backup, name, sources, store, train)",
        "--set train.num_step: train.num_step: unknown key (did you mean train.num_steps?)",
        "--set train.optimizer.warmup: train.optimizer.warmup: Input should be greater than or equal to 0, got -1",
    ]


def test_an_override_of_a_whole_mapping_takes_the_place_of_its_lines(write):
    (told,) = mistakes(write(GOOD), "train={num_steps: -1}")
    assert told.startswith("--set train: train.num_steps: ")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.num_steps", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("name.first=3", "name is a single value"),
        ("sources=[", "not valid YAML"),
        ("name=2020-13-45", "not valid YAML"),
        ("name=!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(write, override: str, told: str):
    message = problem(write(GOOD), override)
    assert message.startswith(f"--set {override}: ")
    assert told in message


def test_a_mapping_may_stand_in_a_file_of_its_own_and_keeps_its_lines(write):
    write("# presets\nlearning_rate: 0.5\n\nwarmups: 3\n", "presets/slow.yaml")
    write("num_steps: 5\noptimizer: slow.yaml\n", "presets/train.yaml")
    path = write("name: demo\ntrain: presets/train.yaml\nstor: /x\n")
    assert sorted(mistakes(path)) == [
        "job.yaml:3: stor: unknown key (did you mean store?)",
        "presets/slow.yaml:4: train.optimizer.warmups: unknown key (did you mean train.optimizer.warmup?)",
    ]
    write("learning_rate: 0.5\n", "presets/slow.yaml")
    job = load_config(Job, write("name: demo\ntrain: presets/train.yaml\n"), overrides=["train.num_steps=6"])
    assert job.train == Train(num_steps=6, optimizer=Optimizer(learning_rate=0.5))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: a\ntrain: {num_steps: 1}\nname: b\n", "job.yaml:3: name: duplicate key"),
        ("name: a\ntrain:\n  num_steps: 1\n  num_steps: 2\n", "job.yaml:4: train.num_steps: duplicate key"),
        ("name: a\ntrain: [\n", "job.yaml:3: train: not valid YAML"),
        ("name: a\n\ttrain: 1\n", "job.yaml:2: name.train: not valid YAML"),
        ("name: a\n---\nname: b\n", "job.yaml:2: name: not valid YAML"),
        ("- name: a\n", "job.yaml:1: the top level must be a mapping"),
        ("just words\n", "job.yaml:1: the top level must be a mapping"),
        ("train:\n  num_steps: 1\nname: 2020-13-45\n", "job.yaml:3: name: month must be in 1..12"),
        ("name: a\nstore: !secret key\n", "job.yaml:2: store: could not determine a constructor for the tag '!secret'"),
        ("name: !!python/object/apply:os.getcwd []\n", "job.yaml:1: "),
        ("name: a\ntrain: absent.yaml\n", "absent.yaml: cannot read this configuration"),
        ("name: a\ntrain: job.yaml\n", "nested more than 50 levels deep"),
        ("name: a\ntrain: &loop [*loop]\n", "nested more than 50 levels deep"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(write, text: str, told: str):
    assert told in problem(write(text))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a:\n- b: 1\n  c: @x\n", "job.yaml:3: a.0.c: "),
        ("a:\n  - b: 1\n  - {b: 2}\n  - b: 3\n    c: @x\n", "job.yaml:5: a.2.c: "),
        ("a:\n- b: 1\n- c:\n    d: x: y\ne: 1\n", "job.yaml:4: a.1.c.d: "),
        ("a:\n- b: 1\ne: 'open\n\nf: 2\n", "job.yaml:3: e: "),
    ],
)
def test_a_line_that_is_no_yaml_is_named_by_its_key(write, text: str, told: str):
    assert problem(write(text)).startswith(told)


@pytest.mark.parametrize("wrong", ["", "s3:/bucket", "S3//bucket", "s3://", "s4://bucket/prefix", "http://host/file"])
def test_a_location_that_cannot_be_one_is_refused(write, wrong: str):
    (told,) = mistakes(write(GOOD + f"store: '{wrong}'\n"))
    assert told.startswith("job.yaml:6: store: ")


def test_a_path_that_is_no_readable_file_is_named(write, tmp_path: Path):
    assert problem("absent.yaml").startswith("absent.yaml: cannot read this configuration (No such file")
    assert problem(str(tmp_path)).startswith(f"{tmp_path}: cannot read this configuration (Is a directory")
    Path("latin.yaml").write_bytes("name: Zürich\n".encode("latin-1"))
    assert problem("latin.yaml").startswith("latin.yaml:1: not valid YAML")


def test_an_empty_file_says_what_is_required(write):
    assert mistakes(write("")) == [
        "job.yaml:1: name: this key is required and has no default",
        "job.yaml:1: train: this key is required and has no default",
    ]


def test_the_fingerprint_follows_values_and_not_places(write):
    job = load_config(Job, write(GOOD))
    same = load_config(Job, write("train: {optimizer: {learning_rate: 1e-1, warmup: 0}, num_steps: 20}\nname: demo\n"))
    assert re.fullmatch("[0-9a-f]{64}", job.fingerprint())
    assert job.fingerprint() == same.fingerprint()
    assert load_config(Job, "job.yaml", overrides=["store=s3://other/place"]).fingerprint() == job.fingerprint()
    others = ["name=other", "train.num_steps=21", "train.optimizer.warmup=1", "sources=[{uri: a}]", "backup={uri: a}"]
    prints = {load_config(Job, "job.yaml", overrides=[change]).fingerprint() for change in others}
    assert len(prints | {job.fingerprint()}) == len(others) + 1


def test_the_fingerprint_is_the_same_in_every_process_and_release():
    job = Job(name="demo", store="/a", train=Train(num_steps=20))
    canonical = (
        '{"backup":null,"name":"demo","sources":[],"train":{"num_steps":20,'
        '"optimizer":{"learning_rate":0.001,"schedule":"cosine","warmup":0}}}'
    )
    command = f"printf '%s' '{canonical}' | sha256sum"
    oracle = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout.split()[0]
    assert job.fingerprint() == oracle


def test_a_configuration_cannot_be_changed():
    job = Job(name="demo", train=Train(num_steps=1))
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        job.name = "other"
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        job.train.optimizer.warmup = 5


def test_local_places_become_absolute_and_uris_stay(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    for written, meant in [
        ("store", f"{tmp_path}/store"),
        ("store/", f"{tmp_path}/store/"),
        ("~/store", "/home/someone/store"),
        ("/data", "/data"),
        ("s3://bucket/x/", "s3://bucket/x/"),
        ("package://cytoray.tokens/data/genes.gz", f"{Path(cytoray.__file__).parent}/tokens/data/genes.gz"),
    ]:
        assert Job(name="demo", store=written, train=Train(num_steps=1)).store == meant


def test_a_package_that_is_not_installed_is_named(write):
    assert mistakes(write(GOOD + "store: package://absent.inner/file\n")) == [
        "job.yaml:6: store: the package 'absent.inner' is not installed, got \"package://absent.inner/file\""
    ]
