"""Modules that run in an autocast region of their own, and modules without parameters."""

import copy
import warnings

import pytest
import torch
from torch import nn

from amptune.runtime import apply_plan, how_to_apply, run_rnn, undo_plan

DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
RNNS = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]


def _floats(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    return [t for item in value for t in _floats(item)] if isinstance(value, tuple) else []


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("number_format", ["bf16", "fp32"])
@pytest.mark.parametrize("name", RNNS)
def test_rnns_compute_in_their_format(name: str, number_format: str, training: bool) -> None:
    module = getattr(nn, name)(4, 8).train(training)
    x = torch.randn(2, 4) if name.endswith("Cell") else torch.randn(5, 2, 4)
    expected = _floats(module(x))
    apply_plan(module, {"": number_format})
    for dtype in (torch.float32, torch.bfloat16):
        outputs = _floats(module(x.to(dtype)))
        assert {t.dtype for t in outputs} == {DTYPE[number_format]}
        for output, reference in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output.float(), reference, rtol=0.1, atol=0.03)
    module(x)[0].float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize("name", RNNS)
def test_states_can_be_fed_back(name: str) -> None:
    module = getattr(nn, name)(4, 8)
    apply_plan(module, {"": "bf16"})
    x = torch.randn(2, 4) if name.endswith("Cell") else torch.randn(5, 2, 4)
    result = module(x)
    state = result if name.endswith("Cell") else result[1]
    assert _floats(module(x, state))[0].dtype == torch.bfloat16


def test_packed_sequences_keep_their_type() -> None:
    module = nn.GRU(4, 8)
    apply_plan(module, {"": "bf16"})
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(3, 2, 4), [3, 2])
    output, _ = module(packed)
    assert isinstance(output, nn.utils.rnn.PackedSequence)
    assert output.data.dtype == torch.bfloat16


@pytest.mark.parametrize("number_format", ["bf16", "fp32"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_attention_computes_in_its_format(number_format: str, training: bool, input_dtype: torch.dtype) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).train(training)
    x = torch.randn(2, 4, 8)
    expected, _ = attention(x, x, x)
    apply_plan(attention, {"": number_format})
    y = x.to(input_dtype)
    mask = torch.zeros(4, 4)
    for arguments in ({}, {"need_weights": False}, {"attn_mask": mask, "need_weights": False}):
        output = attention(y, y, y, **arguments)[0]
        assert output.dtype == DTYPE[number_format]
        torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.02)
    with torch.no_grad():
        assert attention(y, y, y)[0].dtype == DTYPE[number_format]


def test_self_attention_stays_one_projection() -> None:
    """query, key and value are one tensor; casting each by itself would hide that, and cost two more products."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            Products.count += func.__name__.split(".")[0] in ("mm", "addmm")
            return func(*args, **(kwargs or {}))

    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    apply_plan(attention, {"": "bf16"})
    x = torch.randn(2, 4, 8)
    with Products():
        attention(x, x, x, need_weights=False)
    assert Products.count == 2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sites", [{"layers.*": "bf16"}, {"layers.*.linear?": "bf16", "layers.*.self_attn": "bf16"}])
def test_transformer_encoder_runs_its_planned_parts_in_every_mode(training: bool, sites: dict[str, str]) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).train(training)
    plain = copy.deepcopy(encoder)
    x, padding = torch.randn(2, 4, 8), torch.tensor([[False] * 4, [False] * 3 + [True]])
    # In eval mode without gradients the encoder would take its fast path, which calls none of its children.
    expected = plain.train()(x, src_key_padding_mask=padding)
    apply_plan(encoder, sites)
    seen: list[torch.dtype] = []
    inner = encoder.layers[0].linear1
    handle = encoder.layers[1].linear2.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    with torch.no_grad():
        output = encoder(x, src_key_padding_mask=padding)
    handle.remove()
    torch.testing.assert_close(output.float()[0], expected[0], rtol=0.05, atol=0.05)
    assert inner is encoder.layers[0].linear1
    assert seen == [torch.bfloat16]


def test_transformer_fast_path_is_back_after_undo() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).eval()
    before = {name: dict(module.__dict__) for name, module in encoder.named_modules()}
    apply_plan(encoder, {"layers.0.linear1": "bf16"}).undo()
    assert encoder.use_nested_tensor
    assert {name: dict(module.__dict__) for name, module in encoder.named_modules()} == before


def test_decoder_layer_runs_in_its_format() -> None:
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x, memory = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    expected = layer(x, memory)
    apply_plan(layer, {"": "bf16"})
    output = layer(x, memory)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)


class _Scaled(nn.Module):
    """A leaf that the runtime knows nothing about."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.seen: list[torch.dtype] = []

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        product = x @ self.weight
        self.seen.append(product.dtype)
        return product * scale


@pytest.mark.parametrize("number_format", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_an_unknown_leaf_computes_in_its_format(number_format: str, input_dtype: torch.dtype) -> None:
    leaf = _Scaled()
    assert how_to_apply(leaf) == "autocast"
    apply_plan(leaf, {"": number_format})
    output = leaf(torch.randn(2, 4).to(input_dtype), scale=2.0)
    assert leaf.seen == [DTYPE[number_format]]
    assert output.dtype == DTYPE[number_format]
    output.float().sum().backward()
    assert leaf.weight.grad is not None
    assert leaf.weight.grad.dtype == torch.float32


def test_a_container_runs_in_a_region_when_the_plan_asks_for_it() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.out = nn.Linear(4, 4)
            self.seen: list[torch.dtype] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.fc(x)
            scores = h @ h.transpose(-1, -2)
            self.seen += [h.dtype, scores.dtype]
            return self.out(scores @ h)

    model = nn.Sequential(Block())
    apply_plan(model, {"0": {"format": "bf16", "how": "autocast"}, "0.fc": "fp32", "0.out": "fp16"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # our own region is no reason to warn
        output = model(torch.randn(2, 3, 4))
    assert model[0].seen == [torch.float32, torch.bfloat16]
    assert output.dtype == torch.float16


def test_a_region_in_fp32_casts_16_bit_inputs_up_and_ignores_an_outer_autocast() -> None:
    leaf = _Scaled()
    apply_plan(leaf, {"": "fp32"})
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="precision plan"):
        leaf(torch.randn(2, 4).half())
    assert leaf.seen == [torch.float32]


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 4), lambda: nn.Conv1d(2, 2, 1), lambda: nn.LayerNorm(4)])
def test_planned_modules_ignore_an_outer_autocast_and_say_so_once(make) -> None:  # type: ignore[no-untyped-def]
    model = nn.Sequential(make(), make())
    apply_plan(model, {"0": "fp32", "1": "fp16"})
    x = torch.randn(1, 2, 4)
    outputs = []

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            outputs.extend([model[0](x), model(x)])

    with pytest.warns(UserWarning, match="precision plan") as caught:
        run()
    assert [output.dtype for output in outputs] == [torch.float32, torch.float16]
    assert len(caught) == 1


def test_a_pinned_module_without_parameters_gives_back_its_inputs_dtype() -> None:
    softmax = nn.Softmax(-1)
    x = torch.randn(3, 50).bfloat16()
    apply_plan(softmax, {"": "fp32"})
    assert torch.equal(softmax(x), torch.softmax(x.float(), -1).bfloat16())
    assert softmax(x.float()).dtype == torch.float32


def test_a_pinned_loss_module_stays_in_fp32() -> None:
    loss = nn.CrossEntropyLoss(reduction="none")
    apply_plan(loss, {"": "fp32"})
    assert loss(torch.randn(3, 5).bfloat16(), torch.tensor([0, 1, 2])).dtype == torch.float32


@pytest.mark.parametrize(
    ("module", "how"),
    [
        (nn.Linear(2, 2), "swap"),
        (nn.Softmax(-1), "swap"),
        (nn.MultiheadAttention(4, 2), "autocast"),
        (nn.MultiheadAttention(4, 2).out_proj, None),
        (nn.LSTM(2, 2), "autocast"),
        (nn.TransformerEncoderLayer(4, 2), "autocast"),
        (nn.Sequential(nn.Linear(2, 2)), None),
        (nn.ModuleList(), None),
        (nn.LazyLinear(3), None),
        (nn.Linear(2, 2, dtype=torch.cfloat), None),
        (nn.Conv1d(2, 2, 1, dtype=torch.cfloat), None),
        (nn.ParameterList([nn.Parameter(torch.ones(1))]), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_how_to_apply(module: nn.Module, how: str | None) -> None:
    assert how_to_apply(module) == how


def test_how_to_apply_answers_the_same_for_a_planned_module() -> None:
    for module in (nn.Linear(2, 2), nn.LSTM(2, 2), nn.Softmax(-1)):
        before = how_to_apply(module)
        apply_plan(module, {"": "bf16"})
        assert how_to_apply(module) == before
        undo_plan(module)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_an_rnn_on_a_gpu_gets_its_weights_in_the_planned_format(name: str) -> None:
    """There autocast would run it in fp16. The way around needs no GPU to be tried."""
    module = getattr(nn, name)(8, 8, batch_first=True, bidirectional=True)
    plain = copy.deepcopy(module)
    inner = type(module).forward
    apply_plan(module, {"": "bf16"})
    x = torch.randn(2, 5, 8, requires_grad=True)
    output = run_rnn(module, inner, (x,), {})[0]
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), plain(x)[0], rtol=0.05, atol=0.05)
    output.float().sum().backward()
    assert module.weight_ih_l0.grad.dtype == torch.float32
    undo_plan(module)
    assert torch.equal(module(x)[0], plain(x)[0])


class Recomputed(nn.Module):
    """Checkpoints a method with a product that only the region of the module lowers."""

    def __init__(self, *, checkpoints: bool) -> None:
        super().__init__()
        self.checkpoints = checkpoints
        self.fc = nn.Linear(8, 8)
        self.out = nn.Linear(8, 8)

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.fc(x) @ torch.eye(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.checkpoints:
            return self.inner(x)
        return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]


def test_a_region_is_entered_again_where_its_method_is_computed_again() -> None:
    torch.manual_seed(0)
    plain, model = Recomputed(checkpoints=False), Recomputed(checkpoints=True)
    model.load_state_dict(plain.state_dict())
    for each in (plain, model):
        apply_plan(each, {"": {"format": "bf16", "how": "autocast"}, "fc": "bf16", "out": "bf16"})
        out = each(torch.ones(2, 8))
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert found.grad is not None
        assert expected.grad is not None
        assert torch.equal(found.grad, expected.grad)
