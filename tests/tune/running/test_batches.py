from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch

from amptune.tune.running.batches import to_device

META = torch.device("meta")


@dataclasses.dataclass(frozen=True)
class Sample:
    image: torch.Tensor
    boxes: list[torch.Tensor]
    name: str
    size: int = dataclasses.field(init=False, default=3)


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def test_every_tensor_moves_and_every_container_keeps_its_type() -> None:
    x = torch.ones(2)
    moved = to_device({"a": (x, [x]), "pair": Pair(x, x), "sample": Sample(x, [x], "n")}, META)
    assert [t.device for t in (moved["a"][0], moved["a"][1][0], *moved["pair"])] == [META] * 4
    sample = moved["sample"]
    assert isinstance(moved["pair"], Pair)
    assert isinstance(sample, Sample)
    assert (sample.image.device, sample.boxes[0].device, sample.name, sample.size) == (META, META, "n", 3)
