"""The compositions that a CPU cannot show: Inductor, FlexAttention's kernel, FP16 under the scaler, NCCL."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amptune.apply import apply
from amptune.core.formats import Format

from ..apply.composing import LanguageModel, loss_of, tokens, train
from ..apply.test_composition import plan_for

pytestmark = pytest.mark.gpu


def planned(low: Format = Format.BF16, **settings: Any) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(**settings).cuda()
    apply(model, plan_for(model, low))
    return model


def reference(steps: int = 8) -> list[float]:
    torch.manual_seed(0)
    return train(LanguageModel().cuda(), tokens("cuda"), steps)


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_checkpointing_and_fused_adamw(reentrant: bool | None) -> None:
    model = planned(reentrant=reentrant)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    assert train(model, tokens("cuda"), 8, optimizer) == pytest.approx(reference(), rel=0.03)


@pytest.mark.parametrize("reentrant", [None, False])
def test_inductor(reentrant: bool | None) -> None:
    torch._dynamo.reset()
    model = torch.compile(planned(reentrant=reentrant), fullgraph=True)
    assert train(model, tokens("cuda")) == pytest.approx(reference(), rel=0.03)


def test_flex_attention_compiled() -> None:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()
    mask = create_block_mask(lambda b, h, q, kv: q >= kv, None, None, 128, 128, device="cuda")
    kernel = torch.compile(flex_attention)

    def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # The kernel takes heads of at least 16.
        q, k, v = (torch.nn.functional.pad(part, (0, 16 - part.shape[-1])) for part in (q, k, v))
        return kernel(q, k, v, block_mask=mask, scale=8**-0.5)[..., :8]

    data = tokens("cuda", length=128)
    torch.manual_seed(0)
    plain = LanguageModel(flex).cuda()
    model = copy.deepcopy(plain)
    apply(model, plan_for(model))
    assert train(model, data) == pytest.approx(train(plain, data), rel=0.05)


def test_fp16_with_scaler_accumulation_and_clipping() -> None:
    model, data = planned(Format.FP16), tokens("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler("cuda")
    losses = []
    for _ in range(12):
        for part in data.chunk(2):
            loss = loss_of(model, part) / 2
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(2 * loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("process_group", ["nccl"], indirect=True)
def test_data_parallel_and_fully_sharded() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    data, expected = tokens("cuda"), train(planned(), tokens("cuda"), 4)
    wrapped = nn.parallel.DistributedDataParallel(planned(), device_ids=[0])
    assert train(wrapped, data, 4) == pytest.approx(expected, rel=0.02)
    sharded = planned()
    mesh = init_device_mesh("cuda", (1,))
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert train(sharded, data, 4) == pytest.approx(expected, rel=0.02)


def test_a_cuda_graph_replays_a_planned_step() -> None:
    model, data = planned(), tokens("cuda")
    compiled = torch.compile(model, mode="reduce-overhead")
    assert train(compiled, data, 8) == pytest.approx(reference(), rel=0.03)
