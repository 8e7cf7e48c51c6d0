"""The batches of a study: K to train on and some held back, moved to the device once."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import torch

from amptune.capture.target import Target
from amptune.capture.usercode import UserCodeError, user_code
from amptune.errors import CaptureError

HELD_BACK = 4


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches on the device.

    Attributes:
        train: the K training batches.
        held_back: batches that the loss gap is evaluated on.
        quality_data: ``train_batches`` for the user's data, ``single-batch`` when one batch is all there is.
    """

    train: tuple[Any, ...]
    held_back: tuple[Any, ...]
    quality_data: str

    @property
    def is_one(self) -> bool:
        """Whether all training batches are one and the same."""
        return all(batch is self.train[0] for batch in self.train)

    def order(self, index: int) -> list[Any]:
        """The training batches in the index-th order: as given, reversed, then seeded shuffles."""
        if index == 0:
            return list(self.train)
        if index == 1:
            return list(reversed(self.train))
        generator = torch.Generator().manual_seed(index)
        return [self.train[i] for i in torch.randperm(len(self.train), generator=generator).tolist()]


def load_batches(target: Target, steps: int, device: torch.device, *, held_back: int = HELD_BACK) -> Batches:
    """The first ``steps`` batches of ``train_batches()`` to train on and the next ``held_back`` held back.

    Without ``train_batches`` the one batch of ``make_batch`` is used for everything.

    Raises:
        CaptureError: ``train_batches()`` raises or yields fewer batches than needed.
    """
    if target.train_batches is None:
        batch = to_device(target.make_batch(), device)
        return Batches((batch,) * steps, (batch,), "single-batch")
    needed = steps + held_back
    try:
        with user_code():
            found = [to_device(batch, device) for batch in itertools.islice(iter(target.train_batches()), needed)]
    except UserCodeError as error:
        where = f"{error.place}: " if error.place else ""
        raise CaptureError(f"{where}train_batches() raised {error}") from error
    if len(found) < needed:
        raise CaptureError(
            f"train_batches() yielded {len(found)} batches, but {needed} are needed "
            f"({steps} to train on, {held_back} held back)",
            hint="yield more batches, start over at the end of the data, or lower --steps",
        )
    return Batches(tuple(found[:steps]), tuple(found[steps:]), "train_batches")


def to_device(value: Any, device: torch.device) -> Any:
    """``value`` with every tensor in it on ``device``; dicts, lists, tuples and dataclasses keep their type."""
    if hasattr(value, "to") and callable(value.to) and not isinstance(value, type):
        return value.to(device)
    if isinstance(value, Mapping):
        moved = {key: to_device(item, device) for key, item in value.items()}
        return moved if type(value) is dict else _like_mapping(value, moved)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(to_device(item, device) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        twin = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(twin, field.name, to_device(getattr(value, field.name), device))
        return twin
    return value


def _like_mapping(original: Mapping[Any, Any], moved: dict[Any, Any]) -> Any:
    try:
        return type(original)(moved)  # type: ignore[call-arg]
    except TypeError:
        return moved
