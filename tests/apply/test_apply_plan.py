"""apply(model, plan): the plan's sites become the runtime's table and its PINS; errors name what is gone."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amptune import runtime
from amptune.apply import apply, can_pad, how_to_apply, legal_formats, paddings
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.errors import ApplyError

BF16, FP16, FP32 = Format.BF16, Format.FP16, Format.FP32


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 13)
        self.out = nn.Linear(13, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(runtime.pinned("Block.forward#softmax.0", F.softmax)(self.fc(x), -1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def _sites(**extra: SitePlan) -> dict[str, SitePlan]:
    return {f"blocks.{n}.{name}": SitePlan(BF16) for n in range(2) for name in ("fc", "out")} | extra


def test_a_plan_is_in_force_and_undone() -> None:
    model = Net()
    plan = Plan(_sites(**{"blocks.1.fc": SitePlan(FP16, pad=16)}), channels_last=True, output_format=FP32, tf32=True)
    applied = apply(model, plan)
    assert applied.sites["blocks.1.fc"].pad == 16
    assert model(torch.ones(1, 8)).dtype == torch.float32
    assert model.blocks[0](torch.ones(1, 8)).dtype == torch.bfloat16
    assert torch.get_float32_matmul_precision() == "highest"  # TF32 is the caller's to set
    applied.undo()
    assert type(model) is Net
    assert type(model.blocks[1].fc) is nn.Linear


def test_pins_come_with_the_plan_and_go_with_it() -> None:
    model = Net()
    pin = SitePlan(FP32, how="source")
    apply(model, Plan({"blocks.0#exp.0": pin}))
    applied = apply(model, Plan(_sites(**{"blocks.0#softmax.0": pin, "blocks.1#softmax.0": pin})))
    assert runtime.PINS == {"Block.forward#softmax.0": "fp32"}
    applied.undo()
    assert runtime.PINS == {}


def test_a_pin_is_where_capture_found_it() -> None:
    pin = SitePlan(FP32, how="source")
    plan = Plan({"blocks.0#softmax.0": pin, "loss_fn#cross_entropy.0": pin, "#matmul.0": SitePlan(BF16, how="source")})
    applied = apply(Net(), plan, codes={"blocks.0#softmax.0": "Block.helper#softmax.0"})
    assert applied.pins == {"Block.helper#softmax.0": "fp32", "loss_fn#cross_entropy.0": "fp32"}


def test_classes_inside_functions_have_the_name_that_the_source_gives_them() -> None:
    class Local(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.exp()

    applied = apply(Local(), Plan({"#exp.0": SitePlan(FP32, how="source")}))
    here = test_classes_inside_functions_have_the_name_that_the_source_gives_them.__name__
    assert applied.pins == {f"{here}.Local.forward#exp.0": "fp32"}


def test_instances_that_disagree_about_one_line_are_refused() -> None:
    pin, follow = SitePlan(FP32, how="source"), SitePlan(BF16, how="follow")
    with pytest.raises(ApplyError, match=r"blocks\.0#softmax\.0.*blocks\.1#softmax\.0.*one source line"):
        apply(Net(), Plan({"blocks.0#softmax.0": pin, "blocks.1#softmax.0": follow}))


def test_sites_that_are_gone_are_named_with_the_nearest() -> None:
    model = Net()
    plan = Plan(_sites(**{"blocks.0.fc1": SitePlan(BF16), "blocks.7#softmax.0": SitePlan(FP32, how="source")}))
    with pytest.raises(ApplyError) as raised:
        apply(model, plan)
    assert "2 of the plan's 6 sites are not in this model: blocks.0.fc1, blocks.7#softmax.0" in str(raised.value)
    assert "did 'blocks.0.fc1' become 'blocks.0.fc'?" in str(raised.value)
    assert raised.value.exit_code == 3
    assert type(model) is Net


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({"blocks.0": SitePlan(BF16)}, "takes no format itself"),
        ({"blocks.0.fc": SitePlan(BF16, pad=8, how="autocast")}, "padding is for Linear"),
        ({"conv": SitePlan(Format.FP8_E4M3, scaling="tensorwise")}, "cannot compute in FP8, which is for Linear"),
    ],
)
def test_what_does_not_fit_is_an_apply_error(sites: dict[str, SitePlan], message: str) -> None:
    with pytest.raises(ApplyError, match=message):
        apply(Net(), Plan(sites))


@pytest.mark.parametrize(
    ("module", "device", "capability", "formats"),
    [
        (nn.Linear(2, 2), "cpu", None, (FP32, BF16, FP16)),
        (nn.Linear(2, 2), "cuda", (9, 0), (FP32, BF16, FP16)),
        (nn.Linear(2, 2), "cuda", (7, 5), (FP32, FP16)),
        (nn.Sequential(nn.Linear(2, 2)), "cpu", None, ()),
    ],
    ids=["cpu", "h100", "t4", "container"],
)
def test_legal_formats(
    module: nn.Module, device: str, capability: tuple[int, int] | None, formats: tuple[Format, ...]
) -> None:
    assert legal_formats(module, device_type=device, capability=capability) == formats


def test_what_can_be_padded() -> None:
    assert can_pad(nn.Linear(2, 2))
    assert can_pad(nn.Conv2d(1, 1, 1))
    assert not can_pad(nn.Conv2d(2, 2, 1, groups=2))
    assert not can_pad(nn.LayerNorm(2))
    assert paddings(nn.LayerNorm(2)) == paddings(nn.Linear(8, 16)) == ((0, 0),)
    assert paddings(nn.Linear(768, 50257, bias=False)) == ((0, 0), (64, 0))
    assert paddings(nn.Linear(30, 50)) == ((0, 0), (64, 64))
    assert paddings(nn.Conv2d(3, 64, 7)) == ((0, 0), (0, 8), (0, 4))
    normed = nn.utils.spectral_norm(nn.Conv2d(3, 64, 7))
    assert paddings(normed) == ((0, 0), (0, 8), (0, 4)), "its bias comes before its weight"
    assert how_to_apply(nn.Linear(2, 2)) == "swap"


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=31, n_positions=16, n_embd=8, n_layer=2, n_head=2, use_cache=False))


def test_a_model_of_transformers_trains_under_a_plan_and_keeps_its_output_type() -> None:
    from amptune.apply import check_realised

    model = _gpt2()
    names = [name for name, module in model.named_modules() if how_to_apply(module) and name]
    sites = {
        name: SitePlan(BF16, how=how_to_apply(model.get_submodule(name)) or "swap")
        for name in names
        if list(model.get_submodule(name).parameters())
    }
    plan = Plan(sites, output_format=FP32)
    apply(model, plan)
    tokens = torch.randint(0, 31, (2, 8))

    def run() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()

    assert check_realised(model, run, plan) == []
    output = model(input_ids=tokens, labels=tokens)
    assert type(output).__name__ == "CausalLMOutputWithCrossAttentions"
    assert output.logits.dtype == torch.float32
    assert isinstance(SimpleNamespace(**output).loss, torch.Tensor)
