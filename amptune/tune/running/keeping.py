"""What the worker holds beside the model that it trains: the weights that runs start from, those that gradients are
compared at, the reference's gradients, and all batches. The user's own process holds none of it, so it is no part of
the memory that a step takes; and where it would be a good part of a GPU, it waits on the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from amptune.runtime import tensors_in
from amptune.tune.running.batches import Batches

COPIES = 3
"""Sets of tensors like the parameters that are held: weights twice, and gradients."""
DEVICE_SHARE = 0.1
"""Share of the device's memory that they may take; beyond it they are held on the host."""


def fits_beside(model_bytes: int, device_bytes: int | None) -> bool:
    """Whether the copies are a small part of the device's memory; always on a CPU, which has none of its own."""
    return device_bytes is None or COPIES * model_bytes <= DEVICE_SHARE * device_bytes


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in pinned memory, from which a GPU reads several times as fast as from what may be swapped out."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(tensor)


def bytes_beside(kept: Iterable[Mapping[str, torch.Tensor]], batches: Batches) -> int:
    """Bytes on a GPU of what is kept, and of all batches but the one that a step trains on."""
    others = _storages([*batches.train[1:], *batches.held_back])
    one = _storages(batches.train[:1])
    return sum((_storages(list(kept)) | {key: size for key, size in others.items() if key not in one}).values())


def _storages(values: Any) -> dict[int, int]:
    """Address -> bytes of the GPU memory behind the tensors in ``values``."""
    memory = (tensor.untyped_storage() for tensor in tensors_in(values) if tensor.is_cuda)
    return {storage.data_ptr(): storage.nbytes() for storage in memory}
