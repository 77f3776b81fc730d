"""One stage in several processes: each holds a shard of the weights (FSDP2) and learns from its share of an update.

`accelerate launch` starts the processes; its configuration files are in `trainer/launch/`. The sharding is torch's
`fully_shard`, applied to every decoder layer and to the whole. With one process nothing here does anything.

The gradient of an update is the one that a single process computes, up to the order of additions, except for what is
drawn per picture (`shift_px`) and for the auxiliary loss on places, whose mean is taken over each share.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from roboalign.sdk.errors import ConfigError

__all__ = ["Parallel", "Trained", "all_processes", "barrier", "like", "whole"]

_T = TypeVar("_T")


class Trained(nn.ModuleDict):
    """Everything that an optimizer changes; computing inside `forward` is what lets FSDP2 gather and free weights."""

    def forward(self, compute: Callable[[], _T]) -> _T:
        """Returns what `compute` returns."""
        return compute()


class Parallel:
    """The processes of this run, as the training loop sees them."""

    def __init__(self) -> None:
        is_ready = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if is_ready else (0, 1)
        self._skeleton: nn.Module | None = None

    def shard(self, trained: Trained, layers: Sequence[nn.Module]) -> None:
        """Shards the weights in place, the decoder's layers one by one."""
        if self.size == 1:
            return
        # What the sharded modules become again at the end; it has the structure and the ties, and no weights.
        empty: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in trained.parameters()}
        self._skeleton = copy.deepcopy(trained, empty)
        reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true") == "true"
        for layer in layers:
            fully_shard(layer, reshard_after_forward=reshard)
        fully_shard(trained)

    def refuse(self, what: str, instead: str) -> None:
        """Raises ConfigError when there are several processes, for what only one can do."""
        if self.size > 1:
            raise ConfigError(f"{what} trains in one process so far, found {self.size}; {instead}")

    def share(self, samples: Sequence[_T]) -> Sequence[_T]:
        """Returns this process's part of the samples of an update."""
        if len(samples) % self.size:
            raise ConfigError(
                f"FitConfig.batch_size is {len(samples)}, expected a multiple of the number of processes ({self.size})"
            )
        return samples[self.rank :: self.size]

    def total(self, value: float) -> float:
        """Returns the sum of a number over the processes."""
        if self.size == 1:
            return value
        sums = torch.tensor(value, dtype=torch.float64, device=_device())
        dist.all_reduce(sums)
        return float(sums)

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> float:
        """Limits the norm of the whole gradient and returns what it was."""
        return float(whole(nn.utils.clip_grad_norm_(parameters, limit)))

    def gather(self, trained: Trained) -> Trained:
        """Returns the module with all its weights, in every process; with one process it is the same object."""
        if self._skeleton is None:
            return trained
        tensors = {name: whole(tensor) for name, tensor in trained.state_dict().items()}
        gathered = self._skeleton
        for name, parameter in list(gathered.named_parameters()):
            owners = [(m, n) for m in gathered.modules() for n, p in m._parameters.items() if p is parameter]
            filled = nn.Parameter(tensors[name], parameter.requires_grad)
            for module, attribute in owners:  # a tied weight has two
                setattr(module, attribute, filled)
        gathered.load_state_dict(tensors)
        assert isinstance(gathered, Trained)
        return gathered


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor that may be sharded as a whole one; every process must call it in the same order."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Returns `tensor` sharded as `wanted` is; as it is when that is not sharded or has another shape."""
    if not isinstance(wanted, DTensor) or tensor.shape != wanted.shape:
        return tensor
    return distribute_tensor(tensor.to(wanted.device), wanted.device_mesh, wanted.placements)


@contextmanager
def all_processes() -> Iterator[None]:
    """Joins the processes that `accelerate launch` started, as long as the context is open; nothing for a single one.

    Raises:
        ConfigError: they were started without FSDP2.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized():
        yield
        return
    if (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("FSDP_VERSION")) != ("true", "2"):
        raise ConfigError(
            f"{size} processes were started without FSDP2; start them with: accelerate launch --config_file FILE, and "
            "for FILE a configuration with distributed_type: FSDP and fsdp_version: 2 (roboalign/trainer/launch/)"
        )
    has_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true"
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if has_gpu else "gloo")
    try:
        yield
        barrier()
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Waits for the other processes; returns at once when there are none."""
    if dist.is_initialized():
        dist.barrier()


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
