"""Compute-time padding of a Linear's output features."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from amptune.runtime import apply_plan


class _GemmShapes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.widths: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if "mm" in func.__name__:
            self.widths.append(result.shape[-1])
        return result


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("number_format", ["fp32", "bf16"])
def test_padded_linear_computes_the_same_and_gives_the_same_gradients(bias: bool, number_format: str) -> None:
    plain = nn.Linear(8, 13, bias=bias)
    padded = copy.deepcopy(plain)
    apply_plan(plain, {"": number_format})
    apply_plan(padded, {"": {"format": number_format, "pad": 16}})
    x = torch.randn(3, 5, 8)
    results = []
    for module in (plain, padded):
        leaf = x.clone().requires_grad_()
        output = module(leaf)
        (output.float() ** 2).sum().backward()
        results.append((output, leaf.grad, *(p.grad for p in module.parameters())))
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        # The columns of zeros add nothing; only the order of the sums may differ.
        torch.testing.assert_close(one, other, rtol=1e-6 if number_format == "fp32" else 1e-2, atol=1e-6)


def test_gradients_equal_fp64s_at_fp32_accuracy() -> None:
    linear = nn.Linear(8, 13)
    exact = copy.deepcopy(linear).double()
    apply_plan(linear, {"": {"format": "fp32", "pad": 64}})
    x = torch.randn(6, 8)
    weight = torch.randn(6, 13)
    (linear(x) * weight).sum().backward()
    (exact(x.double()) * weight.double()).sum().backward()
    for parameter, reference in zip(linear.parameters(), exact.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), reference.grad, rtol=1e-5, atol=1e-6)


def test_the_product_is_padded_and_the_parameter_is_not() -> None:
    linear = nn.Linear(8, 13)
    apply_plan(linear, {"": {"format": "bf16", "pad": 16}})
    with _GemmShapes() as recorded:
        output = linear(torch.randn(4, 8))
    assert recorded.widths == [16]
    assert output.shape == (4, 13)
    assert linear.weight.shape == (13, 8)
    assert list(linear.state_dict()) == ["weight", "bias"]


def test_an_aligned_linear_is_left_alone() -> None:
    linear = nn.Linear(8, 32)
    apply_plan(linear, {"": {"format": "bf16", "pad": 16}})
    with _GemmShapes() as recorded:
        linear(torch.randn(4, 8))
    assert recorded.widths == [32]


def test_a_following_view_works_unless_the_plan_asks_for_a_strided_output() -> None:
    class Flattens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 13)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x).view(x.shape[0], -1)

    model, x = Flattens(), torch.randn(2, 5, 8)
    apply_plan(model, {"fc": {"format": "bf16", "pad": 16}})
    assert model(x).shape == (2, 65)
    apply_plan(model, {"fc": {"format": "bf16", "pad": 16, "strided": True}})
    assert not model.fc(x).is_contiguous()
    with pytest.raises(RuntimeError, match="view"):
        model(x)


def test_a_tied_head_is_padded_without_touching_the_embedding() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(13, 8)
            self.head = nn.Linear(8, 13, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(x))

    model = Tied()
    plain = copy.deepcopy(model)
    apply_plan(model, {"head": {"format": "bf16", "pad": 64}, "table": "bf16"})
    apply_plan(plain, {"head": "bf16", "table": "bf16"})
    tokens = torch.tensor([[0, 12, 5]])
    for each in (model, plain):
        each(tokens).float().logsumexp(-1).sum().backward()
    assert model.head.weight is model.table.weight
    assert model.table.weight.grad is not None
    torch.testing.assert_close(model.table.weight.grad, plain.table.weight.grad, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("pad", [-8, 2.5, True, "64"])
def test_a_pad_that_is_no_multiple_is_refused(pad: object) -> None:
    with pytest.raises(ValueError, match="pad"):
        apply_plan(nn.Linear(4, 5), {"": {"format": "bf16", "pad": pad}})


def test_padding_what_is_not_a_linear_is_refused_by_name_and_skipped_in_a_glob() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 5))
    with pytest.raises(ValueError, match=r"'0' .*LayerNorm.*padding is for Linear"):
        apply_plan(model, {"0": {"format": "bf16", "pad": 8}})
    applied = apply_plan(model, {"*": {"format": "bf16", "pad": 8}})
    assert (applied.sites["0"].pad, applied.sites["1"].pad) == (0, 8)


def _with_gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    model.zero_grad()
    output = model(x)
    output.float().pow(2).sum().backward()
    return [output, x.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("site", [{"pad_in": 16}, {"pad": 16, "pad_in": 8}])
def test_input_features_are_padded_and_gradients_have_the_sizes_of_the_parameters(site: dict[str, int]) -> None:
    linear = nn.Linear(21, 13)
    plain = copy.deepcopy(linear)
    apply_plan(linear, {"": {"format": "bf16", **site}})
    apply_plan(plain, {"": "bf16"})
    x = torch.randn(2, 4, 21)
    for ours, theirs in zip(_with_gradients(linear, x), _with_gradients(plain, x), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("site", ["bf16", {"format": "bf16", "pad_in": 16}, "fp8_e4m3:rowwise"])
@pytest.mark.parametrize("features", [15, 17, 32])
def test_an_input_of_the_wrong_size_raises_as_it_does_without_a_plan(site: str, features: int) -> None:
    linear = nn.Linear(16, 16)
    apply_plan(linear, {"": site})
    with pytest.raises((RuntimeError, AssertionError, ValueError)):
        linear(torch.randn(4, features))


CONVOLUTIONS = {
    "conv1d": (lambda: nn.Conv1d(3, 5, 3, padding=1), (2, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1), (2, 3, 9, 9)),
    "circular": (lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular", bias=False), (2, 3, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(3, 5, 2), (2, 3, 4, 4, 4)),
    "unbatched": (lambda: nn.Conv2d(3, 5, 3), (3, 9, 9)),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_channels_of_convolutions_are_padded_and_cut(name: str, channels_last: bool) -> None:
    make, shape = CONVOLUTIONS[name]
    model = nn.Sequential(make())
    plain, x = copy.deepcopy(model), torch.randn(shape)
    apply_plan(model, {"0": {"format": "bf16", "pad": 8, "pad_in": 8}}, channels_last=channels_last)
    apply_plan(plain, {"0": "bf16"}, channels_last=channels_last)
    found, expected = _with_gradients(model, x), _with_gradients(plain, x)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    if len(shape) == 4:
        order = torch.channels_last if channels_last else torch.contiguous_format
        assert found[0].is_contiguous(memory_format=order)


def test_a_convolution_with_groups_is_not_padded() -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 6, 3))
    with pytest.raises(ValueError, match="convolutions with one group"):
        apply_plan(model, {"0": {"format": "bf16", "pad_in": 8}})
    applied = apply_plan(model, {"*": {"format": "bf16", "pad": 8, "pad_in": 8}})
    assert [(site.pad, site.pad_in) for site in applied.sites.values()] == [(0, 0), (8, 8)]


@pytest.mark.parametrize("scaling", ["tensorwise", "rowwise", "rowwise_gw_hp"])
def test_fp8_takes_any_sizes_with_both_sides_padded(scaling: str) -> None:
    linear = nn.Linear(21, 13)
    plain = copy.deepcopy(linear)
    apply_plan(linear, {"": {"format": "fp8_e4m3", "scaling": scaling, "pad": 16, "pad_in": 16}})
    x = torch.randn(7, 21)
    for ours, theirs in zip(_with_gradients(linear, x), _with_gradients(plain, x), strict=True):
        assert ours.shape == theirs.shape
        assert (ours.float() - theirs).norm() < 0.1 * theirs.norm()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_padded_sites_compile_in_one_graph() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 4 * 4, 13), nn.Linear(13, 11))
    apply_plan(model, {"0": {"format": "bf16", "pad": 8, "pad_in": 8}, "2": {"format": "bf16", "pad": 16},
                       "3": {"format": "fp8_e4m3", "scaling": "rowwise", "pad": 16, "pad_in": 16}},
               channels_last=True)  # fmt: skip
    x = torch.randn(2, 3, 6, 6)
    eager = _with_gradients(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(_with_gradients(compiled, x), eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2)
    torch._dynamo.reset()
