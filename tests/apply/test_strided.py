"""Padded outputs are left uncopied where the code behind them takes it, found by running it."""

import pytest
import torch
from torch import nn

from amptune.apply import apply, strided_where_safe
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan


class Net(nn.Module):
    """``views`` flattens what follows its rows, which a strided tensor does not allow; ``head`` keeps its last dim."""

    def __init__(self) -> None:
        super().__init__()
        self.views = nn.Linear(8, 13)
        self.aligned = nn.Linear(65, 16)
        self.head = nn.Linear(16, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.views(x).view(x.shape[0], -1)
        return self.head(self.aligned(x)).view(-1, 11)


PATHS = ("views", "aligned", "head")


def test_what_raises_keeps_its_copy_and_what_does_not_goes_without() -> None:
    model, x = Net(), torch.randn(4, 5, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    safe = strided_where_safe(model, lambda: model(x).pow(2).mean(), PATHS)
    assert safe == {"head"}
    assert type(model.head) is nn.Linear
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    apply(model, Plan({"head": SitePlan(Format.BF16, pad=64, strided=True)}))
    assert not model.head(torch.randn(4, 16)).is_contiguous()


def test_code_that_reads_memory_past_the_strides_is_caught_by_its_loss() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 13)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.fc(x)
            return out.as_strided((out.numel(),), (1,))

    model, x = Reads(), torch.randn(4, 8)
    assert strided_where_safe(model, lambda: model(x).pow(2).mean(), ("fc",)) == frozenset()


@pytest.mark.parametrize("paths", [(), ("aligned",)])
def test_nothing_runs_where_nothing_is_padded(paths: tuple[str, ...]) -> None:
    model = Net()
    model.aligned = nn.Linear(64, 16)

    def run() -> torch.Tensor:
        raise AssertionError("not needed")

    assert strided_where_safe(model, run, paths) == frozenset()
