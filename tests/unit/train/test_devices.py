"""Several processes as one run, seen from a process that is alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qwenkit.core.errors import InputError, QwenkitError
from qwenkit.train import devices
from qwenkit.train.options import FinetuneOptions


def options(**changes: Any) -> FinetuneOptions:
    return FinetuneOptions(model="m", data=("d",), out="o", **changes)


@pytest.mark.parametrize("sharding", [{"fsdp": True}, {"deepspeed": "zero2"}])
def test_sharding_needs_a_launcher(sharding: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InputError, match="start it with torchrun --nproc-per-node N -m qwenkit finetune"):
        devices.check_launch(options(**sharding))
    devices.check_launch(options())


def test_single_rows_do_not_go_with_zero3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(InputError, match="train_tables chatml cannot be trained with ZeRO-3"):
        devices.check_launch(options(deepspeed="zero3", train_tables="chatml"))


def test_fsdp_needs_others() -> None:
    with pytest.raises(InputError, match="this is the only one"):
        devices.join_fsdp(object())


def test_alone_everything_is_as_it_is() -> None:
    cpu = torch.device("cpu")
    assert devices.together(lambda: 3, one_first=True) == devices.from_first(lambda: 3) == 3
    assert devices.any_of(True, cpu)
    assert not devices.any_of(False, cpu)
    assert devices.sum_of(7, cpu) == 7
    devices.wait_for_all()
    assert not devices.is_group()
    with pytest.raises(InputError, match="broken"):
        devices.together(_fail)


def test_only_lost_peers_become_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"
    with pytest.raises(RuntimeError, match="Connection closed"), devices.lost_peers():
        raise RuntimeError(lost)
    monkeypatch.setattr(devices, "is_group", lambda: True)
    with pytest.raises(QwenkitError, match="another process of this run has ended"), devices.lost_peers():
        raise RuntimeError(lost)
    with pytest.raises(RuntimeError, match="shapes"), devices.lost_peers():
        raise RuntimeError("shapes do not fit")


def _fail() -> None:
    raise InputError("broken")
