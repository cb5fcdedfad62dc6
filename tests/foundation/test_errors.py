"""Errors that cross from a Ray worker to the driver unchanged and tell what to do."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from ray import cloudpickle

from cytoray import errors
from cytoray.errors import CytorayError
from cytoray.failpoints import FailpointError

LEAVES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CytorayError)]
DETAILS = {"uri": "s3://b/x", "shard": 3, "offenders": ["A", "B"], "nested": {"seen": None}}


@pytest.mark.parametrize("kind", [*LEAVES, FailpointError])
@pytest.mark.parametrize("roundtrip", [
    lambda error: pickle.loads(pickle.dumps(error)),  # noqa: S301 - bytes made one line ago
    lambda error: cloudpickle.loads(cloudpickle.dumps(error)),
    copy.copy,
    copy.deepcopy,
], ids=["pickle", "cloudpickle", "copy", "deepcopy"])  # fmt: skip
def test_every_error_survives_the_way_back_from_a_worker(kind: type[CytorayError], roundtrip):
    error = kind("The shard is torn.", remedy="Ingest it again.", **DETAILS)
    back = roundtrip(error)
    assert type(back) is kind
    assert (back.problem, back.remedy) == ("The shard is torn.", "Ingest it again.")
    assert back.details.items() >= DETAILS.items()
    assert back.details == error.details
    assert str(back) == str(error) == "The shard is torn. Ingest it again."
    assert repr(back) == repr(error)
    json.dumps(back.details)


def test_the_names_that_others_catch_are_there():
    expected = {"CytorayError", "ConfigError", "StorageError", "NotFoundError", "ConflictError", "DigestError"}
    expected |= {"CorpusError", "ModelError", "TrainingError", "RegistryError", "ServingError", "RequestError"}
    assert {kind.__name__ for kind in LEAVES} >= expected
    for kind in (errors.NotFoundError, errors.ConflictError, errors.DigestError):
        assert issubclass(kind, errors.StorageError)
    # A run that was asked to stop has not failed: whoever started it may start it again. A refused model is no mistake.
    others = {"TrainingStoppedError": 75, "GateError": 3}
    assert {kind.__name__: kind.exit_code for kind in LEAVES if kind.exit_code != 2} == others


def test_a_request_error_keeps_its_code():
    error = errors.RequestError("Gene 3 has no value.", remedy="Send one.", code="length_mismatch", cell=4)
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - bytes made one line ago
    assert back.code == error.code == "length_mismatch"
    assert back.details == {"code": "length_mismatch", "cell": 4}
    assert errors.RequestError("Not JSON.").code == "malformed_payload"


def test_an_error_without_a_remedy_is_its_problem():
    assert str(CytorayError("It broke.")) == "It broke."
