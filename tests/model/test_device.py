"""One function chooses the device; a GPU that is not there is never used in silence."""

from __future__ import annotations

import logging

import pytest
import torch

from cytoray.errors import ConfigError
from cytoray.model.device import choose_device, choose_reserved_device


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Pretend that PyTorch finds so many GPUs."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return pretend


def test_auto_takes_a_gpu_if_there_is_one(gpus):
    gpus(2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")
    gpus(0)
    assert choose_device("auto") == torch.device("cpu")


def test_a_device_that_is_not_there_is_refused(gpus):
    gpus(0)
    with pytest.raises(ConfigError, match=r"there is no cuda here\. Usable: auto, cpu"):
        choose_device("cuda")
    gpus(1)
    with pytest.raises(ConfigError, match=r"no cuda:1 here\. This process has 1 GPU"):
        choose_device("cuda:1")


def test_an_actor_uses_the_gpu_that_it_reserved(gpus, caplog):
    gpus(1)
    assert choose_reserved_device(0.5) == torch.device("cuda")
    assert choose_reserved_device(0) == torch.device("cpu")
    gpus(0)
    with caplog.at_level(logging.WARNING, "cytoray"):
        assert choose_reserved_device(1) == torch.device("cpu")
    assert "1 GPU(s) are reserved (CUDA_VISIBLE_DEVICES: " in caplog.text
    assert "but PyTorch finds none" in caplog.text
