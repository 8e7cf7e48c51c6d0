"""Which reshapes are views, against torch itself."""

from __future__ import annotations

import itertools

import pytest
import torch

from amptune.analyze.sitefacts.views import is_view

SHAPES = [(2, 3, 4), (6, 4), (1, 6, 1, 4), (4, 6)]
WANTED = [(24,), (6, 4), (2, 12), (4, 3, 2), (1, 24, 1), (8, 3)]


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_torch_decides_for_every_order_of_dimensions(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    for order in itertools.permutations(range(len(shape))):
        tensor = torch.empty(shape).permute(order)
        try:
            tensor.view(wanted)
            expected = True
        except RuntimeError:
            expected = False
        assert is_view(tensor.shape, tensor.stride(), wanted) is expected, (order, wanted)


def test_an_expanded_tensor_is_copied() -> None:
    tensor = torch.empty(3, 1).expand(3, 4)
    assert not is_view(tensor.shape, tensor.stride(), (12,))
    assert is_view(tensor.shape, tensor.stride(), (3, 2, 2))
