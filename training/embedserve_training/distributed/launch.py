"""How the processes that train together join, agree and end, so that none waits for one that has ended.

``torchrun`` starts the processes. Training tensors go over NCCL between GPUs and over gloo between CPUs. Agreements
always go over gloo, without waiting for a GPU.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from embedserve.errors import EmbedserveError, SetupError, TrainingError
from embedserve_training.distributed.collectives import SINGLE_PROCESS, Processes, is_launched

_T = TypeVar("_T")

_AGREEMENT_TIMEOUT = timedelta(days=30)
"""The others wait this long for process 0, which may have millions of images to decode."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, as one of them sees them. With one process every call returns at once."""

    processes: Processes = SINGLE_PROCESS
    group: Any = None
    """A gloo group of all processes, for agreements."""

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which plans, writes and reports for all."""
        return self.processes.rank == 0

    def all_reduce_max(self, *numbers: float) -> list[float]:
        """The maximum of each number over all processes, in every process."""
        if self.processes.count == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values.tolist()

    def mean(self, number: float) -> float:
        """The mean of a number over all processes, in every process."""
        if self.processes.count == 1:
            return number
        value = torch.tensor([number], dtype=torch.float64)
        dist.all_reduce(value, group=self.group)
        return value.item() / self.processes.count

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """A block that all processes enter: if it fails in one, it fails in all, and one of them reports why.

        Raises:
            EmbedserveError: in the first process in which the block failed, its error.
            SystemExit: in all others, which report nothing.
        """
        if self.processes.count == 1:
            yield
            return
        failure: EmbedserveError | None = None
        try:
            yield
        except EmbedserveError as error:
            failure = error
        before_last = self.processes.count - self.processes.rank
        highest, code = self.all_reduce_max(before_last if failure else 0, failure.exit_code if failure else 0)
        if not highest:
            return
        if failure and highest == before_last:
            raise failure
        self._wait_for_exit_of(self.processes.count - round(highest))
        raise SystemExit(round(code))

    def broadcast_from_first(self, find: Callable[[], _T]) -> _T:
        """The result of ``find`` in process 0, in every process; it must be picklable.

        Raises:
            EmbedserveError: in process 0, the error of ``find``.
            SystemExit: in all others, if it failed.
        """
        found: list[Any] = [None]
        with self.fail_together():
            if self.is_first:
                found = [find()]
        if self.processes.count > 1:
            dist.broadcast_object_list(found, src=0, group=self.group)
        result: _T = found[0]
        return result

    def _wait_for_exit_of(self, rank: int) -> None:
        # torchrun ends all processes as soon as one has ended, so the one that reports why must end first.
        with suppress(RuntimeError):
            dist.recv(torch.zeros(1), rank, group=self.group)


@contextmanager
def join_process_group(device: str) -> Iterator[ProcessGroup]:
    """The group of the processes that ``torchrun`` started, for the block; a single process without ``torchrun``.

    Args:
        device: as in ``TrainConfig``: auto, cpu, cuda or mps. On CUDA each process of a machine has its own GPU.

    Raises:
        SetupError: there are fewer GPUs than processes, or environment variables of ``torchrun`` are missing.
        TrainingError: the connection to another process was lost.
    """
    joined_here = is_launched() and not dist.is_initialized()
    if joined_here:
        _join(device)
    processes = Processes.current()
    if processes.count == 1:
        yield ProcessGroup()
        return
    try:
        yield ProcessGroup(processes, dist.new_group(backend="gloo", timeout=_AGREEMENT_TIMEOUT))
    except BaseException as error:
        if joined_here:
            # Not before this process has reported the error: the others wait for it to end.
            atexit.register(dist.destroy_process_group)
        if isinstance(error, RuntimeError) and _is_lost_connection(error):
            raise TrainingError(
                f"process {processes.rank} has lost the connection to another process of the run:"
                f" {' '.join(str(error).split())[:200]}",
                hint="it may have reported why it ended; the same command continues from the last checkpoint",
            ) from error
        raise
    if joined_here:
        dist.destroy_process_group()


def _join(device: str) -> None:
    on_gpus = device in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpus:
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            raise SetupError(
                f"process {local} of this machine has no GPU: there are {gpus}",
                hint=f"torchrun --nproc-per-node {gpus}, or train on CPUs: --device cpu",
            )
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("nccl" if on_gpus else "gloo")
    except ValueError as error:
        raise SetupError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the processes cannot connect: {error}",
            hint="start them with torchrun, or unset WORLD_SIZE for a single one",
        ) from error


def _is_lost_connection(error: RuntimeError) -> bool:
    # gloo's errors have no class; their text names the file of gloo that raised them.
    return isinstance(error, dist.DistError) or "gloo" in str(error)
