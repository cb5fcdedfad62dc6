"""What a job may read: uploads, and what is really below the places that the operator allows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cytoray.errors import RequestError
from cytoray.serving.jobs.config import JobsConfig
from cytoray.serving.jobs.inputs import check_corpus, check_uri

S3 = ("s3://lab/in/", "s3://open")

REFUSED = [
    "http://169.254.169.254/latest/meta-data/",
    "https://example.org/cells.h5ad",
    "ftp://lab/in/cells.h5ad",
    "gs://lab/in/cells.h5ad",
    "memory://cells.h5ad",
    "package://scanpy.datasets/10x_pbmc68k_reduced.h5ad",
    "simplecache::s3://lab/in/cells.h5ad",
    "s3://lab/in/a.zip::http://example.org/",
    "s3://lab/other/cells.h5ad",
    "s3://lab/inner/cells.h5ad",
    "s3://lab/in/../other/cells.h5ad",
    "s3://lab/in//cells.h5ad",
    "s3://lab/in/./cells.h5ad",
    "s3://lab/in/*.h5ad",
    "s3://lab/in/cells.h5ad?versionId=1",
    "s3://user@lab/in/cells.h5ad",
    "S3://lab/in/cells.h5ad",
    "s3://LAB/in/cells.h5ad",
    "s3://opened/cells.h5ad",
    "s3://lab/in/\x00cells.h5ad",
    "/etc/passwd",
    "cells.h5ad",
    "../cells.h5ad",
    "~/cells.h5ad",
    "file:///etc/passwd",
    "file://other/root/cells.h5ad",
    "",
    " ",
    "//etc/passwd",
]


@pytest.mark.parametrize("uri", REFUSED)
def test_other_places_are_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        check_uri(uri, allowed=(*S3, str(tmp_path)))
    assert caught.value.code == "input_not_allowed"


def test_allowed_places_are_read() -> None:
    for uri in ("s3://lab/in/cells.h5ad", "s3://lab/in/deep/", "s3://open/cells.h5ad"):
        assert check_uri(uri, allowed=S3) == uri


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An allowed folder with a file, beside one that is not."""
    for name in ("root", "rooted", "secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cells.h5ad").write_bytes(b"x")
    return tmp_path / "root"


def test_local_files_are_read_by_their_real_path(root: Path) -> None:
    real = str((root / "cells.h5ad").resolve())
    (root / "link.h5ad").symlink_to(root / "cells.h5ad")
    for uri in (f"{root}/cells.h5ad", f"file://{root}/cells.h5ad", f"{root}/../root/cells.h5ad", f"{root}/link.h5ad"):
        assert check_uri(uri, allowed=(str(root),)) == real
    assert check_uri(f"{root}/", allowed=(str(root),)) == f"{root.resolve()}/"
    with pytest.raises(RequestError, match="no such file"):
        check_uri(f"{root}/none.h5ad", allowed=(str(root),))


def test_no_way_leads_out_of_an_allowed_folder(root: Path) -> None:
    secret = root.parent / "secret"
    (root / "out.h5ad").symlink_to(secret / "cells.h5ad")
    (root / "folder").mkdir()
    (root / "folder" / "deep").symlink_to(secret)
    (root / "counts").mkdir()
    (root / "counts" / "matrix.mtx").write_bytes(b"x")
    (root / "counts" / "genes.tsv").symlink_to("/etc/passwd")
    ways = [
        f"{root}/../secret/cells.h5ad",
        f"{root}/%2e%2e/secret/cells.h5ad",
        f"file://{root}/%2e%2e/secret/cells.h5ad",
        f"{root}ed/cells.h5ad",
        f"{root}/out.h5ad",
        f"{root}/folder/deep/cells.h5ad",
        f"{root}/folder/",
        f"{root}/",
        f"{root}/counts/matrix.mtx",
    ]
    for way in ways:
        with pytest.raises(RequestError) as caught:
            check_uri(way, allowed=(str(root),))
        assert caught.value.code in ("input_not_allowed", "not_found"), way
        assert str(secret) not in str(caught.value) or str(secret) in way


def test_a_corpus_is_read_if_its_name_is_allowed() -> None:
    assert check_corpus("blood@2", allowed=("corpus:blood",)) == "blood@2"
    assert check_corpus("lung", allowed=("corpus:*",)) == "lung"
    for name in ("lung", "blood/../lung", "blood@x", "*", "../blood", "blood@1@2", ""):
        with pytest.raises(RequestError):
            check_corpus(name, allowed=("corpus:blood",))


def test_places_are_checked_when_the_service_is_configured(tmp_path: Path) -> None:
    assert JobsConfig(allowed_inputs=["rel"]).allowed_inputs == (f"{os.getcwd()}/rel",)
    for bad in ("https://example.org/", "s3://", "corpus:"):
        with pytest.raises(ValidationError):
            JobsConfig(allowed_inputs=(bad,))


def test_a_link_that_is_made_later_is_noticed_before_the_file_is_opened(
    serve_jobs: Callable[..., Any], cells_file: Path, root: Path
) -> None:
    file = root / "mine.h5ad"
    file.write_bytes(cells_file.read_bytes())
    service = serve_jobs(allowed_inputs=(str(root),))
    jobs = [service.submit(task="embed", input={"uri": str(file)}).json()["id"]]
    service.work()
    jobs.append(service.submit(task="embed", input={"uri": str(file)}).json()["id"])
    file.unlink()
    file.symlink_to(cells_file)
    service.work()
    states = [service.ask("GET", f"/v1/jobs/{job}").json() for job in jobs]
    assert [state["state"] for state in states] == ["succeeded", "failed"]
    assert states[1]["problem"]["code"] == "input_not_allowed"
