"""A planned model in the hands of the usual training code: what it composes with, and that it trains the same there."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from amptune.apply import apply, check_realised
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.runtime import undo_plan

from .composing import WIDTH, LanguageModel, loss_of, tokens, train

DATA = tokens()


def plan_for(model: nn.Module, low: Format = Format.BF16) -> Plan:
    """Everything in ``low``, the norms in FP32, one linear padded."""
    sites = {
        name: SitePlan(Format.FP32 if isinstance(module, nn.LayerNorm) else low, pad=64 if name.endswith("fc1") else 0)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding)
    }
    return Plan(sites=sites, output_format=Format.FP32)


def planned(low: Format = Format.BF16, **settings: object) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(**settings)  # type: ignore[arg-type]
    apply(model, plan_for(model, low))
    return model


def reference(steps: int = 8) -> list[float]:
    """Losses of the same model in FP32."""
    torch.manual_seed(0)
    return train(LanguageModel(), DATA, steps)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # reentrant checkpointing without gradients
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_it_trains_as_fp32_does_with_tied_weights_sdpa_and_checkpointing(reentrant: bool | None) -> None:
    model = planned(reentrant=reentrant)
    assert check_realised(model, lambda: loss_of(model, DATA).backward(), plan_for(model)) == []
    model.zero_grad()
    assert train(model, DATA) == pytest.approx(reference(), rel=0.02)
    assert model.head.weight is model.embed.weight
    assert model.head.weight.dtype == torch.float32


@pytest.mark.usefixtures("fresh_compiler")
def test_it_trains_under_compile_with_checkpointing() -> None:
    model = torch.compile(planned(reentrant=False), backend="aot_eager", fullgraph=True)
    assert train(model, DATA) == pytest.approx(reference(), rel=0.02)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention() -> None:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(lambda b, h, q, kv: q >= kv, None, None, 16, 16, device="cpu", BLOCK_SIZE=16)

    def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, block_mask=mask)

    torch.manual_seed(0)
    plain = LanguageModel(flex)
    model = copy.deepcopy(plain)
    apply(model, plan_for(model))
    with torch.no_grad():  # uncompiled, it has no backward on a CPU
        torch.testing.assert_close(model(DATA), plain(DATA), rtol=0.05, atol=0.1)


def test_accumulation_scaler_clipping_and_several_groups() -> None:
    """FP16 with the order unscale_, clip, step, update; two micro-batches a step; no decay on vectors."""
    model = planned(Format.FP16)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0, "lr": 5e-3},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    losses = []
    for _ in range(8):
        for part in DATA.chunk(2):
            loss = loss_of(model, part) / 2
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert torch.isfinite(norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(2 * loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert scaler.get_scale() == 2.0**10


class LoRA(nn.Module):
    """A frozen linear and a low-rank update, as fine-tuning libraries wrap them."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_frozen_layers_under_low_rank_updates() -> None:
    torch.manual_seed(0)
    model = LanguageModel().requires_grad_(False)
    for block in model.blocks:
        block.qkv, block.fc1 = LoRA(block.qkv), LoRA(block.fc1)
    apply(model, plan_for(model))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 8
    losses = train(model, DATA, 20, torch.optim.AdamW(trained, lr=3e-2))
    assert losses[-1] < losses[0]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".down." in name or ".up." in name}


def test_an_exponential_average_is_a_planned_model_of_its_own() -> None:
    model = planned()
    average = copy.deepcopy(model).requires_grad_(False)
    train(model, DATA, 4)
    with torch.no_grad():
        for mean, now in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(now, 0.5)
    between = loss_of(average, DATA).item()
    fresh = planned()
    assert loss_of(model, DATA).item() < between < loss_of(fresh, DATA).item()


def test_state_goes_from_a_plain_model_to_a_planned_one_and_back() -> None:
    torch.manual_seed(1)
    plain = LanguageModel()
    model = planned()
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    train(model, DATA, 3)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    plain.load_state_dict(torch.load(file, weights_only=True))
    undone = copy.deepcopy(model)
    undo_plan(undone)
    assert torch.equal(undone(DATA), plain(DATA))
    assert {value.dtype for value in plain.state_dict().values()} == {torch.float32}


def test_the_optimizers_state_carries_over_a_restart() -> None:
    straight = planned()
    optimizer = torch.optim.AdamW(straight.parameters(), lr=1e-2)
    train(straight, DATA, 3, optimizer)
    restarted = planned()
    restarted.load_state_dict(straight.state_dict())
    other = torch.optim.AdamW(restarted.parameters(), lr=1e-2)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # loading shares the tensors
    assert train(straight, DATA, 3, optimizer) == train(restarted, DATA, 3, other)


def test_evaluation_between_steps_changes_nothing() -> None:
    """eval() and no_grad between training steps, with dropout in training: weight casts made there freeze nothing."""
    one, other = planned(dropout=0.1), planned(dropout=0.1)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (one, other)]
    losses: list[list[float]] = [[], []]
    for step in range(4):
        for model, optimizer, found in zip((one, other), optimizers, losses, strict=True):
            torch.manual_seed(step)
            found += train(model, DATA, 1, optimizer)
        other.eval()
        with torch.no_grad():
            first = other(DATA)
            assert torch.equal(first, other(DATA))
        with torch.inference_mode():
            other(DATA)
        other.train()
    assert losses[0] == losses[1]


def test_a_pickled_model_trains_on_as_the_original() -> None:
    model = planned()
    train(model, DATA, 2)
    twin = pickle.loads(pickle.dumps(model))
    assert type(twin.blocks[0].fc1) is type(model.blocks[0].fc1)
    assert twin.head.weight is twin.embed.weight
    assert train(twin, DATA, 3) == train(model, DATA, 3)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("reentrant", [None, False])
def test_data_parallel_with_accumulation_trains_tied_weights(reentrant: bool | None) -> None:
    model = planned(reentrant=reentrant)
    wrapped = nn.parallel.DistributedDataParallel(model)
    alone = planned(reentrant=reentrant)
    for each, context in ((wrapped, wrapped.no_sync()), (alone, torch.enable_grad())):
        with context:
            loss_of(each, DATA[:4]).backward()
        loss_of(each, DATA[4:]).backward()
    for one, two in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    assert train(wrapped, DATA, 4) == pytest.approx(train(alone, DATA, 4), rel=1e-3)


@pytest.mark.usefixtures("process_group")
def test_fully_sharded_blocks_train_with_clipping() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    model, alone = planned(), planned()
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sharded = train(model, DATA, 4)
    assert sharded == pytest.approx(train(alone, DATA, 4), rel=0.01)
    loss_of(model, DATA).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    assert torch.isfinite(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def test_a_new_plan_mid_training_keeps_optimizer_and_weights() -> None:
    model = planned()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = train(model, DATA, 4, optimizer)
    apply(model, plan_for(model, Format.FP16))
    second = train(model, DATA, 4, optimizer)
    assert second[0] < first[0]
    assert first + second == pytest.approx(reference(), rel=0.03)
    assert model.blocks[0].fc1.weight.shape == (4 * WIDTH, WIDTH)
