"""Several processes, one a GPU, that train one model. The only module that knows torch.distributed.

In a process that was not launched here, each function does what it does for one: nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch

from goemotions.errors import Interrupted, TrainingError
from goemotions.models import engines

T = TypeVar("T")

# The others wait while the first one validates and uploads.
WAIT = timedelta(hours=1)
# From SIGTERM to SIGKILL: a pod has as much, and the first process writes its checkpoint.
SHUTDOWN_SECONDS = 30


def launch(processes: int, function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function in several processes that know of each other; answers what the first one returned.

    Args:
        processes: how many; one a GPU, or on the CPU any number.
        function: one that can be imported by its name; so can its arguments be pickled.

    Raises:
        TrainingError: one of them failed, and the others were ended.
        Interrupted: SIGTERM or SIGINT, which all of them got too.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=SHUTDOWN_SECONDS,
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        results: dict[int, Any] = elastic_launch(config, _member)(function, *arguments)
    except SignalException as error:
        raise Interrupted("training was stopped: start it again to go on from its last checkpoint") from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        reason = failure.message["message"] if isinstance(failure.message, dict) else failure.message
        raise TrainingError(
            f"process {rank} of {processes} failed, all were ended: {reason.strip().splitlines()[0]}"
        ) from error
    found: T = results[0]
    return found


def _member(function: Callable[..., Any], *arguments: Any) -> Any:
    from torch.distributed.elastic.multiprocessing.errors import record

    # What is raised here reaches the launcher through a file.
    found: Any = record(_joined)(function, *arguments)
    return found


def _joined(function: Callable[..., T], *arguments: Any) -> T:
    local = int(os.environ["LOCAL_RANK"])
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(local)
        else:
            torch.set_num_threads(max(1, engines.cpus() // int(os.environ["LOCAL_WORLD_SIZE"])))
        # Objects and flags go between the CPUs, whatever the gradients go by: no step waits for a GPU to read a flag.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=WAIT)
    except RuntimeError as error:
        raise TrainingError(f"the GPUs cannot work together ({error}): use one, or look at the driver and NCCL") from error
    try:
        return function(*arguments)
    finally:
        torch.distributed.destroy_process_group()


def is_launched() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    return torch.distributed.get_rank() if is_launched() else 0


def size() -> int:
    return torch.distributed.get_world_size() if is_launched() else 1


def is_first() -> bool:
    """Whether this process validates, writes and logs."""
    return rank() == 0


def on_first(compute: Callable[[], T]) -> T:
    """What the first process computes, in all of them."""
    if not is_launched():
        return compute()
    held: list[Any] = [compute() if is_first() else None]
    torch.distributed.broadcast_object_list(held, src=0, device=torch.device("cpu"))
    found: T = held[0]
    return found


def total(value: float) -> float:
    """The sum of every process' value."""
    if not is_launched():
        return value
    held = torch.tensor([value], dtype=torch.float64)
    torch.distributed.all_reduce(held)
    return float(held)


def wrap(network: torch.nn.Module) -> torch.nn.Module:
    """The network as one whose gradients are the mean over the processes after each backward pass."""
    if not is_launched():
        return network
    return torch.nn.parallel.DistributedDataParallel(network)


def share(batch: list[int]) -> tuple[list[int], float]:
    """This process' rows of a batch, and the factor of their mean loss with which the mean gradient is that of the whole batch.

    A process for which no row is left takes one with the factor 0: the gradients are waited for from all.
    """
    mine = batch[rank() :: size()]
    return mine or batch[:1], len(mine) * size() / len(batch)
