"""Training one model in several processes, one per GPU. The only module that imports torch.distributed.

In a process that was not launched here, each function does what a single process needs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record

from goemotions.errors import Interrupted, TrainingError
from goemotions.models import devices, engines
from goemotions.usage import Usage

T = TypeVar("T")

# The other processes wait while the first one validates and uploads.
WAIT = timedelta(hours=1)
# From SIGTERM to SIGKILL, as Kubernetes has it by default; in it the first process writes its checkpoint.
SHUTDOWN_SECONDS = 30


def launch(processes: int, function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function in several connected processes, and returns what the first one returned; all that is passed is pickled.

    Raises:
        TrainingError: a process failed, and the others were ended.
        Interrupted: SIGTERM or SIGINT, which was passed on to all processes.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
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
        raise Interrupted("training was stopped: start it again to resume from its last checkpoint") from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        reason = failure.message["message"] if isinstance(failure.message, dict) else failure.message
        first = reason.strip().partition("\n")[0]
        raise TrainingError(f"process {rank} of {processes} failed, all were ended: {first}") from error
    result: T = results[0]
    return result


# Passes exceptions to the launcher through a file.
@record
def _member(function: Callable[..., T], *arguments: Any) -> T:
    local = int(os.environ["LOCAL_RANK"])
    try:
        on_gpus = devices.resolve() == "cuda"
        if on_gpus:
            torch.cuda.set_device(local)
        else:
            engines.set_torch_threads(max(1, devices.cpus() // int(os.environ["LOCAL_WORLD_SIZE"])))
        # Objects and flags are exchanged between CPUs, so that no step waits for a GPU to read a flag.
        backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
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
    """Computes a value in the first process and returns it in all."""
    if not is_launched():
        return compute()
    values: list[Any] = [compute() if is_first() else None]
    torch.distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    result: T = values[0]
    return result


def total(*values: float) -> tuple[float, ...]:
    """Returns the sum over all processes of each value."""
    if not is_launched():
        return values
    summed = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(summed)
    return tuple(summed.tolist())


def total_usage(used: Usage) -> Usage:
    """Returns what all processes used together; they run at the same time."""
    cpu, gpu, memory = total(used.cpu_seconds, used.gpu_seconds, used.memory_gb_seconds)
    return dataclasses.replace(used, cpu_seconds=cpu, gpu_seconds=gpu, memory_gb_seconds=memory)


def wrap(network: torch.nn.Module) -> torch.nn.Module:
    """Wraps a network so that each backward pass averages its gradients over the processes."""
    if not is_launched():
        return network
    return torch.nn.parallel.DistributedDataParallel(network)


def share(batch: list[int]) -> tuple[list[int], float]:
    """Returns this process' rows of a batch, and the factor for their mean loss that makes the averaged gradient that of the batch.

    A process without a row takes one with the factor 0, because the averaging waits for all processes.
    """
    mine = batch[rank() :: size()]
    return mine or batch[:1], len(mine) * size() / len(batch)
