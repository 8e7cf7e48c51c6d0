"""The table says what the plan says of every module, and no more, in as few lines as roles allow."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amptune import runtime
from amptune.errors import PlanError
from amptune.patch.spec import PatchSpec
from amptune.patch.table import Entry, check_table, resolve, spelled, table_of, value_of
from tests.patch.cases import plan_of, spec_of


def keys_of(sites, modules=(), **fields) -> list[str]:
    return [entry.key for entry in table_of(plan_of(sites), spec_of(sites, modules=modules, **fields))]


def blocks(*names: str, count: int = 3, format: str = "bf16") -> dict[str, str]:
    return {f"blocks.{index}.{name}": format for index in range(count) for name in names}


def test_roles_that_agree_are_one_line_in_the_order_of_the_plan():
    assert keys_of({"embed": "bf16", **blocks("fc1", "fc2"), "head": "bf16"}) == [
        "embed", "blocks.*.fc1", "blocks.*.fc2", "head",
    ]  # fmt: skip


def test_the_odd_ones_out_follow_their_role_by_path():
    sites = {**blocks("fc", count=5), "blocks.3.fc": "fp32"}
    assert keys_of(sites) == ["blocks.*.fc", "blocks.3.fc"]


def test_without_a_majority_each_layer_has_its_line():
    sites = {**blocks("fc", count=4), "blocks.0.fc": "fp32", "blocks.2.fc": "fp16", "blocks.3.fc": "fp32"}
    assert keys_of(sites) == [f"blocks.{index}.fc" for index in range(4)]


def test_a_module_that_the_plan_leaves_alone_is_not_matched():
    assert keys_of(blocks("fc"), modules=["blocks.3.fc"]) == ["blocks.0.fc", "blocks.1.fc", "blocks.2.fc"]


def test_an_activation_between_planned_layers_keeps_their_numbers():
    assert keys_of(blocks("mlp.0", "mlp.2"), modules=[f"blocks.{index}.mlp.1" for index in range(3)]) == [
        "blocks.*.mlp.0", "blocks.*.mlp.2",
    ]  # fmt: skip


def test_nested_repetition_is_one_line():
    assert keys_of({f"stages.{a}.{b}.conv": "bf16" for a in range(2) for b in range(3)}) == ["stages.*.*.conv"]


def test_a_number_in_a_containers_name_is_a_block_number_and_one_in_a_layers_name_is_not():
    sites = {f"layer{a}.{b}.conv{c}": "bf16" for a in (1, 2) for b in range(2) for c in (1, 2)}
    assert keys_of(sites) == ["layer*.*.conv1", "layer*.*.conv2"]
    assert keys_of({"fc1": "bf16", "fc2": "bf16"}) == ["fc1", "fc2"]
    assert keys_of({f"conv{n}.conv1": "bf16" for n in (1, 2)}) == ["conv*.conv1"]


def test_a_glob_that_a_person_would_read_as_deeper_is_not_used():
    """`*.fc` could be read as matching `0.inner.fc` too."""
    sites = {"0.fc": "bf16", "1.fc": "bf16"}
    assert keys_of(sites, modules=["0.inner.fc"]) == ["0.fc", "1.fc"]


def test_padding_and_regions_are_part_of_what_must_agree():
    sites = {
        "a.0": {"format": "bf16", "pad": 8},
        "a.1": {"format": "bf16", "pad": 8},
        "b": {"format": "bf16", "how": "autocast"},
    }
    assert table_of(plan_of(sites), spec_of(sites)) == [
        Entry("a.*", (("format", "bf16"), ("pad", 8))),
        Entry("b", (("format", "bf16"), ("how", "autocast"))),
    ]


def test_a_value_is_written_as_short_as_it_can_be_and_read_back():
    scaled = (("format", "fp8_e4m3"), ("scaling", "rowwise"))
    written = {(("format", "bf16"),): "bf16", scaled: "fp8_e4m3:rowwise",
               (*scaled, ("pad", 16)): {"format": "fp8_e4m3", "scaling": "rowwise", "pad": 16}}  # fmt: skip
    for value, text in written.items():
        assert spelled(value) == text
        assert value_of(text) == value


def test_tensors_that_blocks_hold_are_one_line():
    own = {"format": "bf16", "how": "own"}
    sites = {"blocks.0.fc": "bf16", "blocks.0.gamma": own, "blocks.1.fc": "bf16", "blocks.1.gamma": own, "table": own}
    modules = ["blocks.0.fc", "blocks.1.fc", "blocks.0", "blocks.1", "blocks"]
    spec = PatchSpec("model.py", modules=tuple(modules), tensors=("blocks.0.gamma", "blocks.1.gamma", "table"))
    entries = table_of(plan_of(sites), spec)
    check_table(entries, plan_of(sites), spec)
    assert [(entry.key, spelled(entry.value)) for entry in entries] == [
        ("blocks.*.fc", "bf16"), ("blocks.*.gamma", "bf16"), ("table", "bf16"),
    ]  # fmt: skip


def test_ops_that_follow_or_are_pinned_need_no_line():
    sites = {
        "fc": "bf16",
        "#softmax.0": {"format": "fp32", "how": "source"},
        "#add.0": {"format": "bf16", "how": "follow"},
    }
    assert keys_of(sites) == ["fc"]


def test_a_region_for_an_op_takes_the_16_bit_format_of_its_module():
    sites = {f"attn#{op}": {"format": format, "how": "autocast"} for op, format in [("a.0", "bf16"), ("b.0", "fp32")]}
    assert table_of(plan_of(sites), spec_of(sites)) == [Entry("attn", (("format", "bf16"), ("how", "autocast")))]


def test_regions_of_blocks_are_one_line():
    region = {"format": "bf16", "how": "autocast"}
    sites = {f"blocks.{index}#matmul.0": region for index in range(3)} | blocks("qkv")
    modules = [f"blocks.{index}" for index in range(3)]
    spec = spec_of(sites, modules=modules)
    entries = table_of(plan_of(sites), spec)
    check_table(entries, plan_of(sites), spec)
    assert [(entry.key, spelled(entry.value)) for entry in entries] == [("blocks.*", region), ("blocks.*.qkv", "bf16")]
    left = {name: site for name, site in sites.items() if name != "blocks.1#matmul.0"}
    assert keys_of(left, modules=modules) == ["blocks.0", "blocks.2", "blocks.*.qkv"]


def test_a_layer_of_a_list_says_nothing_of_what_other_members_hold():
    """`blocks.*` of layers could be read as matching `blocks.2.fc` too."""
    sites = {"blocks.0": "bf16", "blocks.1": "bf16", "blocks.0.fc": "bf16"}
    assert keys_of(sites) == ["blocks.0", "blocks.1", "blocks.0.fc"]


def test_a_reason_stands_where_all_sites_of_the_line_have_it():
    sites = {f"a.{i}": {"format": "fp32", "why": "underflows"} for i in range(2)}
    sites |= {f"b.{i}": {"format": "fp32", "why": f"reason {i}"} for i in range(2)}
    assert [entry.why for entry in table_of(plan_of(sites), spec_of(sites))] == ["underflows", ""]


def test_a_shared_module_is_named_once():
    shared = {"blocks.1.fc": "blocks.0.fc", "head": "embed"}
    sites = {"blocks.0.fc": "bf16", "embed": "bf16"}
    assert keys_of(sites, modules=list(shared), shared=shared) == ["blocks.*.fc", "embed"]


def test_a_site_that_the_model_does_not_have_is_an_error():
    plan, spec = plan_of({"fc9": "bf16"}), spec_of({"fc1": "bf16"})
    with pytest.raises(PlanError, match=r"the plan names 'fc9', which the model in model\.py does not have"):
        check_table(table_of(plan, spec), plan, spec)


def test_a_table_that_says_something_else_is_noticed():
    sites = {"a.0": "bf16", "a.1": "fp32"}
    plan, spec = plan_of(sites), spec_of(sites)
    for wrong in ([Entry("a.*", (("format", "bf16"),))], [Entry("a.0", (("format", "bf16"),))]):
        with pytest.raises(AssertionError):
            check_table(wrong, plan, spec)


names = st.sampled_from(["0", "1", "2", "10", "fc", "fc1", "fc10", "fcx", "blocks", "a"])
paths = st.lists(st.lists(names, min_size=1, max_size=4).map(".".join), min_size=1, max_size=14, unique=True)


@settings(max_examples=300, deadline=None)
@given(paths, st.data())
def test_any_table_resolves_to_its_plan_as_the_runtime_reads_it(modules, data):
    planned = data.draw(st.lists(st.sampled_from(modules), unique=True))
    sites = {path: data.draw(st.sampled_from(["bf16", "fp16", "fp32"])) for path in planned}
    spec = PatchSpec("model.py", modules=tuple(modules))
    entries = table_of(plan_of(sites), spec)
    check_table(entries, plan_of(sites), spec)
    assert len(entries) <= max(len(sites), 1)
    seen: dict[str, str] = {}
    for key, format in sorted(
        ((entry.key, str(entry.value[0][1])) for entry in entries), key=lambda item: ("*" not in item[0], len(item[0]))
    ):
        seen |= dict.fromkeys(runtime.match_paths(key, modules), format)
    assert seen == sites
    assert {path: value[0][1] for path, value in resolve(entries, modules).items()} == sites
