"""Two processes with half a batch each compute the loss and the gradients of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from embedserve_training.distributed import gather_rows
from embedserve_training.losses import nt_xent

TAU = 0.2


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of eight images as raw features, float [8, 6] each."""
    return tuple(torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(5)))  # type: ignore[return-value]


def weight() -> torch.Tensor:
    """The only parameter of the model: a linear layer of 6 × 4."""
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(6)).requires_grad_()


def work(rank: int, folder: str) -> None:
    """One process: its half of the batch, then the mean of gradients and losses over processes, as DDP takes it."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        x1, x2 = inputs()
        mine = slice(4 * rank, 4 * rank + 4)
        w = weight()
        loss, _ = nt_xent(x1[mine] @ w, x2[mine] @ w, TAU, gather_rows)
        loss.backward()
        results = torch.cat([w.grad.flatten(), loss.detach().view(1)])  # type: ignore[union-attr]
        dist.all_reduce(results)
        if rank == 0:
            torch.save(results / 2, f"{folder}/results.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_loss_and_gradients_of_one_on_the_joined_batch(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    both = torch.load(tmp_path / "results.pt", weights_only=True)
    x1, x2 = inputs()
    w = weight()
    loss, _ = nt_xent(x1 @ w, x2 @ w, TAU)
    loss.backward()
    assert w.grad is not None
    torch.testing.assert_close(both[:-1], w.grad.flatten(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both[-1], loss.detach(), rtol=1e-5, atol=1e-6)
