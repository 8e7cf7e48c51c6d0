from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.core.runtimetable import runtime_table

BF16, FP16, FP32 = Format.BF16, Format.FP16, Format.FP32


def test_a_function_in_a_package_puts_its_module_in_a_region() -> None:
    plan = Plan(
        {
            "attn#softmax.0": SitePlan(FP32, how="autocast"),
            "attn#matmul.0": SitePlan(BF16, how="autocast"),
            "attn.qkv": SitePlan(FP16),
            "attn#add.0": SitePlan(BF16, how="follow"),
        }
    )
    assert runtime_table(plan) == {"attn": {"format": "bf16", "how": "autocast"}, "attn.qkv": {"format": "fp16"}}


def test_an_entry_says_what_is_not_as_usual_and_keeps_the_order_of_the_plan() -> None:
    plan = Plan(
        {
            "head": SitePlan(Format.FP8_E4M3, scaling="rowwise", pad=16, pad_in=16, strided=True),
            "attn#matmul.0": SitePlan(BF16, how="autocast"),
            "scale": SitePlan(BF16, how="own", why="it is added to the stream"),
            "rnn": SitePlan(FP16, how="autocast"),
            "attn#softmax.0": SitePlan(FP32, how="source"),
        }
    )
    table = runtime_table(plan)
    assert table == {
        "head": {"format": "fp8_e4m3", "scaling": "rowwise", "pad": 16, "pad_in": 16, "strided": True},
        "attn": {"format": "bf16", "how": "autocast"},
        "scale": {"format": "bf16"},
        "rnn": {"format": "fp16", "how": "autocast"},
    }
    assert list(table) == ["head", "attn", "scale", "rnn"]


def test_a_layer_of_its_own_beats_a_region_at_its_path() -> None:
    """An op inside the layer asks for a region; the layer is planned itself."""
    plan = Plan({"attn#matmul.0": SitePlan(BF16, how="autocast"), "attn": SitePlan(FP32)})
    assert runtime_table(plan) == {"attn": {"format": "fp32"}}
