"""What planned modules and pinned functions ask of Python at each call: on a fast GPU that is what a step waits for."""

import copy
import cProfile
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amptune import runtime
from amptune.runtime import apply_plan, fp32

NUM_LAYERS = 12


class _Scale(nn.Module):
    """A module that only the user knows: it runs in an autocast region of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def _calls(function: Callable[[], object]) -> int:
    """Calls of Python and C functions, once what is done only once is done."""
    function()
    profiler = cProfile.Profile()
    profiler.runcall(function)
    return sum(entry.callcount for entry in profiler.getstats())


@pytest.mark.parametrize(
    ("make", "plan", "most"),
    [
        (lambda: nn.Linear(8, 8), {"*": "bf16"}, (25, 10)),
        (lambda: nn.LayerNorm(8), {"*": "bf16"}, (25, 10)),
        (lambda: nn.RMSNorm(8), {"*": "bf16"}, (22, 12)),
        (lambda: nn.BatchNorm1d(8), {"*": "bf16"}, (5, 5)),
        (lambda: nn.Softmax(-1), {str(index): "fp32" for index in range(NUM_LAYERS)}, (21, 21)),
        (_Scale, {"*": "bf16"}, (70, 70)),
    ],
    ids=["linear", "layer norm", "rms norm", "batch norm", "softmax", "region"],
)
@pytest.mark.parametrize("together", [False, True], ids=["on a CPU", "as on a GPU"])
def test_a_planned_module_adds_few_calls(
    make: Callable[[], nn.Module],
    plan: dict[str, str],
    most: tuple[int, int],
    together: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "_saves_launches", lambda weight: together)
    model = nn.Sequential(*[make() for _ in range(NUM_LAYERS)])
    x = torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    low = copy.deepcopy(model).bfloat16()
    plain = _calls(lambda: low(x))
    apply_plan(model, plan)
    planned = _calls(lambda: model(x))
    assert planned - plain <= most[together] * NUM_LAYERS, "calls of each layer beyond those of a BF16 layer"


def test_a_pinned_function_adds_few_calls() -> None:
    x = torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    assert _calls(lambda: fp32(F.softmax)(x, -1)) <= 32
