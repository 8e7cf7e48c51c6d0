"""Each swapped module: output and gradients in the planned format, close to FP32; parameters and state untouched."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amptune.runtime import SWAPS, apply_plan

TOLERANCE = {"fp32": 1e-6, "bf16": 3e-2, "fp16": 4e-3}
DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = list(DTYPE)

MODULES = {
    "linear": (lambda: nn.Linear(6, 5), (3, 6)),
    "linear_no_bias": (lambda: nn.Linear(6, 5, bias=False), (2, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2), (2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, stride=2), (2, 3, 6, 6)),
    "conv2d_reflect": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 5, 5)),
    "conv2d_same": (lambda: nn.Conv2d(3, 4, 3, padding="same", bias=False), (2, 3, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (1, 2, 3, 3, 3)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 3, 3, stride=2, output_padding=1), (2, 4, 5)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1), (1, 4, 4, 4)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (1, 2, 3, 3, 3)),
    "layer_norm": (lambda: nn.LayerNorm(8), (3, 8)),
    "layer_norm_plain": (lambda: nn.LayerNorm((2, 4), elementwise_affine=False), (3, 2, 4)),
    "rms_norm": (lambda: nn.RMSNorm(8), (3, 8)),
    "group_norm": (lambda: nn.GroupNorm(2, 4), (3, 4, 5)),
    "batch_norm1d": (lambda: nn.BatchNorm1d(4), (6, 4)),
    "batch_norm2d": (lambda: nn.BatchNorm2d(4), (3, 4, 3, 3)),
    "batch_norm3d": (lambda: nn.BatchNorm3d(2), (2, 2, 2, 3, 3)),
    "instance_norm1d": (lambda: nn.InstanceNorm1d(4, affine=True), (2, 4, 6)),
    "instance_norm2d": (lambda: nn.InstanceNorm2d(4, track_running_stats=True), (2, 4, 3, 3)),
    "instance_norm3d": (lambda: nn.InstanceNorm3d(2, affine=True), (2, 2, 2, 3, 3)),
    "prelu": (lambda: nn.PReLU(4), (2, 4, 3)),
}


def _forward_and_gradients(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    x = x.clone().requires_grad_()
    output = module(x)
    weight = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    (output.float() * weight).sum().backward()
    gradients = [x.grad, *(p.grad for p in module.parameters())]
    assert all(g is not None for g in gradients)
    return output, [g for g in gradients if g is not None]


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-3))


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("name", MODULES)
def test_swapped_module_computes_in_its_format_close_to_fp32(name: str, number_format: str) -> None:
    make, shape = MODULES[name]
    module, x = make(), torch.randn(shape)
    planned = copy.deepcopy(module)
    apply_plan(planned, {"": number_format})

    expected, expected_gradients = _forward_and_gradients(module, x)
    output, gradients = _forward_and_gradients(planned, x)

    assert isinstance(planned, SWAPS[type(module)])
    assert output.dtype == DTYPE[number_format]
    assert _relative(output, expected) < TOLERANCE[number_format]
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == torch.float32
        assert _relative(gradient, reference) < 2 * TOLERANCE[number_format]


@pytest.mark.parametrize("name", MODULES)
def test_input_in_another_16_bit_format_is_cast(name: str) -> None:
    make, shape = MODULES[name]
    module, x = make(), torch.randn(shape)
    apply_plan(module, {"": "fp16"})
    assert module(x.bfloat16()).dtype == torch.float16
    apply_plan(module, {"": "fp32"})
    assert module(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("name", MODULES)
def test_state_dict_keeps_names_shapes_and_dtypes(name: str) -> None:
    make, shape = MODULES[name]
    module = make()
    before = {key: (value.shape, value.dtype) for key, value in module.state_dict().items()}
    apply_plan(module, {"": "bf16"})
    module(torch.randn(shape, requires_grad=True)).sum().backward()
    assert {key: (value.shape, value.dtype) for key, value in module.state_dict().items()} == before
    make().load_state_dict(module.state_dict())


def test_transposed_convolution_takes_output_size_and_refuses_other_padding_modes() -> None:
    module = nn.ConvTranspose2d(2, 2, 3, stride=2)
    apply_plan(module, {"": "bf16"})
    assert module(torch.randn(1, 2, 4, 4), output_size=[10, 10]).shape[-2:] == (10, 10)
    module.padding_mode = "circular"
    with pytest.raises(ValueError, match="zeros"):
        module(torch.randn(1, 2, 4, 4))


def test_bilinear_casts_both_inputs() -> None:
    module = nn.Bilinear(3, 4, 2)
    a, b = torch.randn(5, 3), torch.randn(5, 4)
    expected = module(a, b)
    apply_plan(module, {"": "bf16"})
    output = module(a, b.half())
    assert output.dtype == torch.bfloat16
    assert _relative(output, expected) < 3e-2


def test_embedding_gathers_in_fp32_so_that_a_frequent_token_keeps_its_gradient() -> None:
    table = nn.Embedding(3, 2)
    apply_plan(table, {"": "bf16"})
    rows = table(torch.zeros(4096, dtype=torch.long))
    assert rows.dtype == torch.bfloat16
    rows.sum().backward()
    # Summed in bf16 the count stops at 256.
    assert table.weight.grad is not None
    assert torch.equal(table.weight.grad[0], torch.full((2,), 4096.0))


def test_embedding_keeps_padding_index_and_sparse_gradients() -> None:
    table = nn.Embedding(5, 2, padding_idx=0, sparse=True)
    apply_plan(table, {"": "fp16"})
    table(torch.tensor([0, 1, 1])).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse
    assert table.weight.grad.to_dense()[:2].tolist() == [[0, 0], [2, 2]]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bag_sums_in_fp32(mode: str) -> None:
    bag = nn.EmbeddingBag(7, 3, mode=mode)
    tokens = torch.tensor([[0, 1, 2], [3, 3, 4]])
    weights = torch.rand(2, 3) if mode == "sum" else None
    expected = bag(tokens, per_sample_weights=weights)
    apply_plan(bag, {"": "bf16"})
    output = bag(tokens, per_sample_weights=None if weights is None else weights.double())
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected.bfloat16())


def test_rms_norm_without_eps_keeps_the_epsilon_of_fp32() -> None:
    norm = nn.RMSNorm(16)
    x = torch.randn(4, 16) * 1e-4
    expected = norm(x)
    apply_plan(norm, {"": "fp16"})
    # With fp16's own epsilon, 1e-3, the result would be a third of what it should be.
    assert _relative(norm(x), expected) < 1e-2


def test_norms_take_statistics_in_fp32() -> None:
    """Squares of 300 leave fp16, so a kernel with fp16 statistics would answer zeros or NaN."""
    x = 300 * torch.randn(4, 8, 16)
    for norm in (nn.LayerNorm(16), nn.RMSNorm(16), nn.GroupNorm(2, 8)):
        expected = norm(x)
        apply_plan(norm, {"": "fp16"})
        assert _relative(norm(x), expected) < 4e-3


@pytest.mark.parametrize("number_format", ["bf16", "fp16"])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_right_in_train_and_eval(
    number_format: str, momentum: float | None, tracked: bool, affine: bool
) -> None:
    plain = nn.BatchNorm2d(3, momentum=momentum, track_running_stats=tracked, affine=affine)
    planned = copy.deepcopy(plain)
    apply_plan(planned, {"": number_format})
    for _ in range(3):
        x = 2 * torch.randn(4, 3, 5, 5) + 1
        assert _relative(planned(x), plain(x)) < TOLERANCE[number_format]
    if tracked:
        assert planned.running_mean is not None
        assert planned.running_mean.dtype == torch.float32
        assert _relative(planned.running_mean, plain.running_mean) < TOLERANCE[number_format]
        assert _relative(planned.running_var, plain.running_var) < TOLERANCE[number_format]
        assert planned.num_batches_tracked == plain.num_batches_tracked == 3
    x = torch.randn(4, 3, 5, 5)
    assert _relative(planned.eval()(x), plain.eval()(x)) < TOLERANCE[number_format]


def test_subclasses_of_a_swapped_class_are_not_swapped() -> None:
    class Doubling(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * F.linear(input, self.weight, self.bias)

    model = nn.Sequential(Doubling(4, 4))
    expected = model(torch.ones(1, 4))
    apply_plan(model, {"0": "bf16"})
    output = model(torch.ones(1, 4))
    assert output.dtype == torch.bfloat16
    assert _relative(output, expected) < 3e-2


def test_repr_says_the_format() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Softmax(-1))
    apply_plan(model, {"0": {"format": "bf16", "pad": 8}, "1": "fp32"})
    assert "out_features=5, bias=True, format=bf16, pad=8" in repr(model)
    assert "Softmax(dim=-1, format=fp32)" in repr(model)
