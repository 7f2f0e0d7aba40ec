"""Two processes with half a batch each take the step that one process takes with the whole batch.

Only batch-norm may differ, and each method uses it as published. SimCLR and Barlow Twins normalise over the global
batch (``batch_norm.synchronise``). MoCo normalises parts of a process's batch, so two processes with s parts equal one
with 2 · s. Instance Discrimination normalises a process's batch, so one process with two parts stands for two. CPC has
no batch-norm.

Gradients are compared as DistributedDataParallel takes them, averaged over processes; two steps are taken, so that the
second one meets the queue, bank, momentum copy and normaliser that the first one left. Methods are in fp64, where
rounding does not push a ReLU to its other side: the first gradients were at most 3e-13 apart, the second ones 8e-12,
those of MoCo, whose batch-norm over two images magnifies what the first step left.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from embedserve_training.distributed.collectives import SINGLE_PROCESS, Processes, gather_rows
from embedserve_training.methods.instance_discrimination import InstanceDiscrimination
from embedserve_training.methods.method import Method
from embedserve_training.networks import batch_norm
from embedserve_training.plan.config import METHODS
from tests.training.method_cases import IMAGES, build, drawn_views, in_double, seeded

BATCH = 8
LR = 0.01
Results = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A method in one process, and its settings in two processes."""

    method: str
    alone: dict[str, Any]
    together: dict[str, Any]

    def build(self, processes: Processes) -> Method:
        method = build(self.method, processes, **(self.alone if processes.count == 1 else self.together))
        if method.global_batch_norm:
            batch_norm.synchronise(method, processes)
        elif isinstance(method, InstanceDiscrimination) and processes.count == 1:
            batch_norm.split(method, 2)
        return in_double(method)


CASES = {
    "simclr": Case("simclr", {}, {}),
    "moco": Case("moco", {"bn_splits": 2}, {"bn_splits": 1}),
    "moco in parts": Case("moco", {"bn_splits": 4}, {"bn_splits": 2}),
    "moco, symmetric": Case(
        "moco", {"bn_splits": 2, "symmetric": True, "layers": 1}, {"bn_splits": 1, "symmetric": True, "layers": 1}
    ),
    "barlow-twins": Case("barlow-twins", {}, {}),
    "instance-discrimination": Case("instance-discrimination", {"proximal_weight": 3.0}, {"proximal_weight": 3.0}),
    "instance-discrimination with noise": Case("instance-discrimination", {"noise": 6}, {"noise": 6}),
    "cpc": Case("cpc", {"directions": 2}, {"directions": 2}),
}
GLOBAL = ("simclr", "barlow-twins")
WITH_DDP = ("simclr", "moco")


def averaged(gradient: Tensor) -> Tensor:
    """The mean over processes, as DDP takes it."""
    if dist.is_initialized():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return gradient


def output_of(method: Method, step: int, call: Callable[..., Any] | None = None) -> Any:
    """The output of a step in this process, for its part of a batch that is drawn for all."""
    own = method.processes.own_rows
    views_VBCSS = [own(view_BCSS).double() for view_BCSS in drawn_views(method, BATCH, seed=step)]
    indices_B = own((torch.arange(BATCH) * 5 + step) % IMAGES)
    return (call or method)(views_VBCSS, indices_B, seeded(step))


def trained(method: Method) -> dict[str, torch.nn.Parameter]:
    return {name: weight for name, weight in method.named_parameters() if weight.requires_grad}


def two_steps(method: Method) -> Results:
    """Losses and gradients of two steps of plain descent, and the method's state afterwards."""
    results: Results = {}
    for step in range(2):
        output = output_of(method, step)
        method.zero_grad()
        output.loss.backward()
        results[f"loss {step}"] = averaged(output.loss.detach().clone())
        for name, weight in trained(method).items():
            assert weight.grad is not None, name
            results[f"gradient {step} {name}"] = averaged(weight.grad.clone())
        with torch.no_grad():
            for name, weight in trained(method).items():
                weight.sub_(LR * results[f"gradient {step} {name}"])
        method.after_step()
    return results | {f"state {name}": value.clone() for name, value in method.state_dict().items()}


def gradients(method: Method, call: Callable[..., Any] | None = None) -> Results:
    """Gradients of the first step; by ``call``, or averaged here."""
    output_of(method, 0, call).loss.backward()
    grads = {name: weight.grad.clone() for name, weight in trained(method).items() if weight.grad is not None}
    return grads if call else {name: averaged(grad) for name, grad in grads.items()}


class NothingGathered(Processes):
    """Bug 1: every process treats its own rows as the global batch."""

    def gather(self, z_BD: Tensor) -> tuple[Tensor, int]:
        return z_BD, 0


class GatheredWithoutGradient(Processes):
    """Bug 1: the rows of others are constants, so the gradients of their losses for this process's rows are lost."""

    def gather(self, z_BD: Tensor) -> tuple[Tensor, int]:
        parts = list(self.gather_detached(z_BD).chunk(self.count))
        parts[self.rank] = z_BD
        return torch.cat(parts), self.rank * len(z_BD)


class OffsetForgotten(Processes):
    """Bug 2: every process looks for its partners at the positions of the first one's."""

    def gather(self, z_BD: Tensor) -> tuple[Tensor, int]:
        return gather_rows(z_BD)[0], 0


class RawAllReduce(Processes):
    """Bug 3: as in the authors' code, the cross-correlation is summed without the gradients of the others' losses."""

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[0] != x.shape[1]:
            return super().all_reduce_sum(x)  # batch-norm, for which they use SyncBatchNorm
        others = self.gather_detached(x.detach().unsqueeze(0)).sum(0) - x.detach()
        return x + others


FAULTS: dict[str, tuple[str, type[Processes]]] = {
    "nothing gathered": ("simclr", NothingGathered),
    "gathered without gradient": ("simclr", GatheredWithoutGradient),
    "offset forgotten": ("simclr", OffsetForgotten),
    "cpc: offset forgotten": ("cpc", OffsetForgotten),
    "raw all-reduce": ("barlow-twins", RawAllReduce),
}


def work(rank: int, folder: str) -> None:
    """One of two processes: every case, the cases with DDP, and the bugs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        processes = Processes.current()
        assert processes == Processes(rank, 2)
        results = {name: two_steps(case.build(processes)) for name, case in CASES.items()}
        for name in WITH_DDP:
            method = CASES[name].build(processes)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # newer PyTorch has a second name for broadcast_buffers
                together = DistributedDataParallel(method, broadcast_buffers=False)
            results[f"DDP {name}"] = gradients(method, together)
        for fault, (name, broken) in FAULTS.items():
            method = CASES[name].build(processes)
            method.processes = broken(rank, 2)  # batch-norm keeps the processes that work
            results[fault] = gradients(method)
        images_GCHW = torch.arange(2 * 96.0).view(4, 3, 4, 4)
        own_BCHW = processes.own_rows(images_GCHW).contiguous(memory_format=torch.channels_last)
        results["join"] = {"whole": images_GCHW, "joined": processes.gather_detached(own_BCHW)}
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Results]]:
    """The results of each of the two processes."""
    folder: Path = tmp_path_factory.mktemp("two")
    spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def distance(mine: Results, theirs: Results, kind: str = "") -> float:
    """The largest difference in any tensor, as a share of its largest absolute value, which counts as .01 at least.

    Some tensors are zero except for rounding, such as gradients along a scale that batch-norm removes.
    """
    names = [name for name in theirs if name.startswith(kind) and theirs[name].numel()]
    assert names
    assert set(names) <= set(mine)
    return max(
        float((mine[name].double() - theirs[name].double()).abs().max() / theirs[name].abs().max().clamp(min=0.01))
        for name in names
    )


def local_statistics(name: str) -> bool:
    return "running_" in name or "num_batches_tracked" in name


def test_every_method_has_a_case() -> None:
    assert {case.method for case in CASES.values()} == set(METHODS)


every_case = pytest.mark.parametrize("name", CASES)


@pytest.mark.slow
@every_case
def test_two_processes_give_the_losses_and_gradients_of_one_on_the_global_batch(
    name: str, by_rank: list[dict[str, Results]]
) -> None:
    alone = two_steps(CASES[name].build(SINGLE_PROCESS))
    assert distance(by_rank[0][name], alone, "loss") < 1e-11
    assert distance(by_rank[0][name], alone, "gradient 0") < 2e-12
    assert distance(by_rank[0][name], alone, "gradient 1") < 1e-10


@pytest.mark.slow
@every_case
def test_two_processes_leave_the_weights_queue_bank_and_normaliser_of_one(
    name: str, by_rank: list[dict[str, Results]]
) -> None:
    alone = two_steps(CASES[name].build(SINGLE_PROCESS))
    state = {key: value for key, value in alone.items() if key.startswith("state")}
    if name not in GLOBAL:
        state = {key: value for key, value in state.items() if not local_statistics(key)}
    assert distance(by_rank[0][name], state) < 1e-10


@pytest.mark.slow
@every_case
def test_both_processes_have_the_same_state(name: str, by_rank: list[dict[str, Results]]) -> None:
    zero, one = (results[name] for results in by_rank)
    kept = {key for key in zero if key.startswith("state") and (name in GLOBAL or not local_statistics(key))}
    assert all(torch.equal(zero[key], one[key]) for key in kept)


@pytest.mark.slow
@pytest.mark.parametrize("name", GLOBAL)
def test_running_statistics_over_both_processes_are_those_of_one_process(
    name: str, by_rank: list[dict[str, Results]]
) -> None:
    alone = two_steps(CASES[name].build(SINGLE_PROCESS))
    statistics = {key: value for key, value in alone.items() if local_statistics(key)}
    assert len(statistics) > 10
    assert distance(by_rank[0][name], statistics) < 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_DDP)
def test_distributed_data_parallel_gives_the_gradients_of_one_process(
    name: str, by_rank: list[dict[str, Results]]
) -> None:
    assert distance(by_rank[0][f"DDP {name}"], gradients(CASES[name].build(SINGLE_PROCESS))) < 2e-12
    assert distance(by_rank[1][f"DDP {name}"], by_rank[0][f"DDP {name}"]) == 0


@pytest.mark.slow
def test_gathered_images_are_equal_in_any_memory_format(
    by_rank: list[dict[str, Results]],
) -> None:
    assert all(torch.equal(results["join"]["joined"], results["join"]["whole"]) for results in by_rank)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["nothing gathered", "gathered without gradient"])
def test_bug_1_no_gather_or_one_without_gradient_would_show(fault: str, by_rank: list[dict[str, Results]]) -> None:
    right = gradients(CASES["simclr"].build(SINGLE_PROCESS))
    assert distance(by_rank[0][fault], right) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "name"), [("offset forgotten", "simclr"), ("cpc: offset forgotten", "cpc")])
def test_bug_2_labels_without_their_offset_would_show(fault: str, name: str, by_rank: list[dict[str, Results]]) -> None:
    assert distance(by_rank[0][fault], gradients(CASES[name].build(SINGLE_PROCESS))) > 0.1


@pytest.mark.slow
def test_bug_3_a_raw_all_reduce_would_give_half_the_gradient(by_rank: list[dict[str, Results]]) -> None:
    right = gradients(CASES["barlow-twins"].build(SINGLE_PROCESS))
    assert distance({name: 2 * grad for name, grad in by_rank[0]["raw all-reduce"].items()}, right) < 2e-12
