"""Several processes as one run: what one of them decides or fails at holds for all. Knows nothing of models or data."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import distributed

from qwenkit.core.environment import local_rank
from qwenkit.core.errors import InputError, QwenkitError
from qwenkit.core.lazy import import_extra
from qwenkit.train.options import FinetuneOptions

Value = TypeVar("Value")
_LAUNCH = "torchrun --nproc-per-node N -m qwenkit finetune ..."
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo/transport")


def check_launch(options: FinetuneOptions) -> None:
    """Looks whether this process was started as the options need it, before anything joins others.

    Raises:
        InputError: sharding was asked for and no launcher started this, or it cannot go with what is trained.
        MissingExtraError: DeepSpeed is not there.
    """
    from qwenkit.train.trainer import uses_zero3

    named = "deepspeed" if options.deepspeed else "fsdp" if options.fsdp else None
    if named is not None and local_rank() is None:
        raise InputError(f"{named} works between processes of a launcher; start it with {_LAUNCH}")
    if options.train_tables == "chatml" and uses_zero3(options):
        raise InputError(
            "train_tables chatml cannot be trained with ZeRO-3; use all or none, or shard with fsdp or deepspeed zero2"
        )
    if options.deepspeed:
        import_extra("deepspeed", "deepspeed")


def join_deepspeed() -> None:
    """Lets DeepSpeed use the process group that is there. On CPUs accelerate leaves this out."""
    import deepspeed

    if deepspeed.comm.is_initialized():
        return
    # It would compile a faster all-reduce for one machine, for more than a minute; gloo does the same and works between machines.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\.")
    deepspeed.init_distributed(dist_backend=distributed.get_backend(), auto_mpi_discovery=False)


def join_fsdp(args: Any) -> None:
    """Sets FSDP2 up as a single device computes: the types of weights stay and autocast does the rest.

    Args:
        args: TrainingArguments; changed.

    Raises:
        InputError: there are no other processes.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import MixedPrecisionPolicy

    # Without it embedding, norms and sums of gradients would be rounded to 16 bits too.
    if not is_group():
        raise InputError(
            f"fsdp shards between processes and this is the only one; start two or more with {_LAUNCH}"
        )
    args.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy()

    state = PartialState()
    if state.distributed_type == DistributedType.MULTI_CPU:
        # On CPUs accelerate would leave FSDP out without a word; it is chosen among these, and the device stays.
        state.distributed_type = DistributedType.MULTI_GPU


def is_group() -> bool:
    """Whether there are other processes."""
    return bool(distributed.is_initialized() and distributed.get_world_size() > 1)


def together(work: Callable[[], Value], *, one_first: bool = False) -> Value:
    """Does something in every process. Where it fails in one, all of them fail, with the error of the first.

    Args:
        work: takes no part in the talk of the processes itself.
        one_first: one process of each machine does it before its others.
    """
    if not is_group():
        return work()
    waits = one_first and bool(local_rank())
    if waits:
        distributed.barrier()
    value, error = None, None
    try:
        value = work()
    except (QwenkitError, OSError) as caught:
        error = caught
    if one_first and not waits:
        distributed.barrier()
    errors: list[Exception | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(errors, error)
    for rank, each in enumerate(errors):
        if each is not None and rank and any(e is None for e in errors[:rank]):
            raise InputError(f"process {rank}: {each}")
        if each is not None:
            raise each
    return value  # type: ignore[return-value]


def from_first(work: Callable[[], Value]) -> Value:
    """Does something in the first process alone, and gives all of them what came of it."""
    if not is_group():
        return work()
    is_first = distributed.get_rank() == 0
    value = together(lambda: work() if is_first else None)
    box: list[Any] = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[no-any-return]


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    if not is_group():
        return flag
    seen = torch.tensor(int(flag), device=device)
    distributed.all_reduce(seen, distributed.ReduceOp.MAX)
    return bool(seen)


def sum_of(count: int, device: torch.device) -> int:
    """The sum over all processes."""
    if not is_group():
        return count
    seen = torch.tensor(count, device=device)
    distributed.all_reduce(seen)
    return int(seen)


def wait_for_all() -> None:
    """Returns when every process is here."""
    if is_group():
        distributed.barrier()


@contextlib.contextmanager
def lost_peers() -> Iterator[None]:
    """Turns the failed talk with a process that has died into a sentence."""
    try:
        yield
    except (RuntimeError, distributed.DistError) as error:
        if isinstance(error, QwenkitError) or not is_group() or not _is_lost(error):
            raise
        raise QwenkitError(
            "another process of this run has ended, so this one stops too; run the same command again to go on"
        ) from error


def _is_lost(error: Exception) -> bool:
    return isinstance(error, distributed.DistError) or any(sign in str(error) for sign in _LOST)
