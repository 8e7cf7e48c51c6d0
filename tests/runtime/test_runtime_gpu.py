"""What only a CUDA device shows: kernels that refuse mixed dtypes, fused ones, TF32 and channels_last layouts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amptune.apply import apply, check_realised, how_to_apply
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.runtime import apply_plan, set_backend_flags

pytestmark = [
    pytest.mark.gpu,
    # A copied RNN has its weights in several pieces of memory, as one in another format has.
    pytest.mark.filterwarnings("ignore:RNN module weights are not part:UserWarning"),
]

LEAVES = {
    "linear": (lambda: nn.Linear(16, 13), (4, 16)),
    "conv2d": (lambda: nn.Conv2d(8, 8, 3), (2, 8, 6, 6)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(8, 8, 2), (2, 8, 4, 4)),
    "layer_norm": (lambda: nn.LayerNorm(16), (4, 16)),
    "rms_norm": (lambda: nn.RMSNorm(16), (4, 16)),
    "group_norm": (lambda: nn.GroupNorm(2, 8), (2, 8, 4, 4)),
    "batch_norm": (lambda: nn.BatchNorm2d(8), (4, 8, 4, 4)),
    "sync_batch_norm": (lambda: nn.SyncBatchNorm(8), (4, 8, 4, 4)),
    "instance_norm": (lambda: nn.InstanceNorm2d(8, affine=True), (2, 8, 4, 4)),
    "lstm": (lambda: nn.LSTM(16, 16), (5, 2, 16)),
    "gru_cell": (lambda: nn.GRUCell(16, 16), (4, 16)),
    "encoder_layer": (lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), (2, 5, 16)),
}


@pytest.mark.parametrize("number_format", [Format.BF16, Format.FP16, Format.FP32])
@pytest.mark.parametrize("name", LEAVES)
def test_each_leaf_is_realised_on_the_device(name: str, number_format: Format) -> None:
    make, shape = LEAVES[name]
    model = nn.Sequential(make()).cuda()
    plain = copy.deepcopy(model)
    x = torch.randn(shape, device="cuda", requires_grad=True)
    plan = Plan({"0": SitePlan(number_format, how=how_to_apply(model[0]) or "swap", pad=16 if name == "linear" else 0)})
    apply(model, plan)

    def run() -> None:
        output = model(x)
        (output[0] if isinstance(output, tuple) else output).float().pow(2).sum().backward()

    assert check_realised(model, run, plan) == []
    ours, theirs = model(x), plain(x)
    ours, theirs = (ours[0], theirs[0]) if isinstance(ours, tuple) else (ours, theirs)
    torch.testing.assert_close(ours.float(), theirs, rtol=0.05, atol=0.05)


def test_fused_adamw_trains_under_grad_scaler_with_channels_last() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(8, 5)).cuda()  # fmt: skip
    apply_plan(model, {"**": "fp16"}, channels_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, fused=True)
    scaler = torch.amp.GradScaler("cuda")
    x, y = torch.randn(16, 3, 8, 8, device="cuda"), torch.randint(0, 5, (16,), device="cuda")
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert model[0](x).is_contiguous(memory_format=torch.channels_last)


def test_compiled_training_follows_eager() -> None:
    model = nn.Sequential(nn.Embedding(31, 32), nn.LayerNorm(32), nn.Linear(32, 31)).cuda()
    apply_plan(model, {"**": "bf16", "2": {"format": "bf16", "pad": 64}}, output_format="fp32")
    compiled = torch.compile(copy.deepcopy(model))
    tokens = torch.randint(0, 31, (4, 16), device="cuda")
    for each in (model, compiled):
        F.cross_entropy(each(tokens).flatten(0, 1), tokens.flatten()).backward()
    for one, other in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0.05, atol=1e-3)


def test_tf32_changes_products_and_is_restored() -> None:
    a = torch.randn(256, 256, device="cuda")
    exact = (a.double() @ a.double()).float()
    restore = set_backend_flags(tf32=False)
    try:
        plain = (a @ a - exact).abs().max()
        set_backend_flags(tf32=True)
        assert (a @ a - exact).abs().max() > 10 * plain
    finally:
        restore()
