"""A bound on the memory that reading a file takes: a few kB may expand to gigabytes, and what a file claims of itself may be false."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from goemotions.errors import DataError

# Beyond what Arrow has reserved, which is up to a gigabyte.
MOST_BYTES = 2**29
# A large file may take more: rows take several times as much memory as disk.
EXPANSION = 16
STATUS = Path("/proc/self/statm")


@contextlib.contextmanager
def bounded(name: str, size: int = 0) -> Iterator[None]:
    """For a block that reads a file: the memory that it may allocate meanwhile is bounded, where the kernel is Linux.

    Args:
        name: what the message calls the file.
        size: of the file, in bytes.

    Raises:
        DataError: it takes more memory.
    """
    former = resource.getrlimit(resource.RLIMIT_DATA)
    most = max(MOST_BYTES, EXPANSION * size)
    # Its first use reserves memory that is not used yet.
    pa.allocate_buffer(1)
    try:
        _limit(most, former)
        yield
    except MemoryError as error:
        raise DataError(
            f"{name} takes too much memory to read (more than {most >> 20} MiB, or than there is): check where it comes from; if it is "
            "what you want, write it in smaller parts (rows, pages, row groups)"
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, former)


def _limit(most: int, former: tuple[int, int]) -> None:
    with contextlib.suppress(OSError, IndexError):
        used = int(STATUS.read_text(encoding="ascii").split()[5]) * resource.getpagesize()
        limits = [limit for limit in (*former, used + most) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), former[1]))
