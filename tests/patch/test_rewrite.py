"""Patching twice, patching with another plan, taking a patch back, and what cannot be patched."""

import dataclasses

import pytest

from amptune.core.formats import Format
from amptune.core.graph import LOSS, Site, TensorMeta
from amptune.core.plan import Plan, SitePlan
from amptune.errors import InputError, PlanError
from amptune.patch.block import BEGIN, END
from amptune.patch.check import check_patched, written_table
from amptune.patch.rewrite import patch_source, unpatch_source
from amptune.patch.spec import PatchSpec
from tests.patch.cases import plan_of, spec_of

SOURCE = """\
import torch
import torch.nn.functional as F


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(8, 8)
        self.b = torch.nn.Linear(8, 8)

    def forward(self, x):
        x = F.softmax(self.a(x), -1)  # user's comment
        return self.b(x).softmax(-1) ** 2


def loss_fn(output, batch):
    return output.mean()
"""
PIN = {"format": "fp32", "how": "source"}
CODES = {f"#{op}": f"Net.forward#{op}" for op in ("softmax.0", "softmax.1", "pow.0")}
FIRST = {"a": "bf16", "b": "fp32", "#softmax.0": PIN, "#pow.0": PIN}
SECOND = {"a": "fp16", "#softmax.1": PIN}


def patch(source: str, sites: dict, **fields) -> str:
    return patch_source(source, plan_of(sites, **fields), spec_for(sites))


def spec_for(sites: dict, **fields):
    where = {"top_class": "Net", "loss": "loss_fn", **fields}
    return spec_of(sites, codes=CODES, modules=["a", "b"], **where)


def test_the_same_plan_again_changes_nothing():
    patched = patch(SOURCE, FIRST)
    assert patched != SOURCE
    assert patch(patched, FIRST) == patched


def test_a_plan_without_a_layer_says_so():
    patched = patch(SOURCE, {})
    assert "\nPRECISION = {}  # no layer is given a format\n" in patched
    assert written_table(patched) == []
    assert unpatch_source(patched, "net.py") == SOURCE
    assert patch(patched, FIRST) == patch(SOURCE, FIRST)


def test_another_plan_replaces_the_patch_alone():
    assert patch(patch(SOURCE, FIRST), SECOND) == patch(SOURCE, SECOND)


def test_a_plan_that_lowers_nothing_still_says_so():
    patched = patch(SOURCE, {"a": "fp32"})
    assert "loss_in" not in patched
    assert [(entry.key, entry.value) for entry in written_table(patched)] == [("a", (("format", "fp32"),))]


def test_what_the_user_edits_outside_the_patch_stays():
    edited = (
        patch(SOURCE, FIRST).replace("# user's comment", "# another comment").replace("Linear(8, 8)", "Linear(8, 16)")
    )
    expected = SOURCE.replace("# user's comment", "# another comment").replace("Linear(8, 8)", "Linear(8, 16)")
    assert unpatch_source(edited) == expected
    assert patch(edited, SECOND) == patch(expected, SECOND)


def test_a_table_edited_by_hand_is_replaced():
    edited = patch(SOURCE, FIRST).replace('"a": "bf16"', '"a": "fp16",  # mine\n    "c": "fp16"')
    assert patch(edited, FIRST) == patch(SOURCE, FIRST)


def test_a_file_without_a_patch_is_returned_as_it_is():
    assert unpatch_source(SOURCE) == SOURCE


def test_a_pin_edited_by_hand_is_undone_where_that_is_safe():
    patched = patch(SOURCE, FIRST)
    edited = patched.replace("fp32(operator.pow)(self.b(x).softmax(-1), 2)", "fp32(operator.pow)(self.b(x), 3)")
    assert edited != patched
    assert "return self.b(x) ** 3\n" in unpatch_source(edited)


def test_a_pin_edited_so_that_precedence_would_change_is_refused():
    edited = patch(SOURCE, FIRST).replace("fp32(operator.pow)(self.b(x).softmax(-1), 2)", "fp32(operator.pow)(-x, 2)")
    with pytest.raises(InputError, match=r"model\.py: a call of fp32\(\.\.\.\) was edited"):
        unpatch_source(edited)


@pytest.mark.parametrize("marker", [BEGIN, END])
def test_a_marker_that_is_gone_is_an_error(marker):
    lines = [line for line in patch(SOURCE, FIRST).splitlines(keepends=True) if not line.startswith(marker)]
    with pytest.raises(InputError, match="expected one '# >>> amptune' line"):
        patch("".join(lines), FIRST)


def test_both_markers_gone_is_an_error():
    lines = [line for line in patch(SOURCE, FIRST).splitlines(keepends=True) if not line.startswith((BEGIN, END))]
    with pytest.raises(InputError, match="imports amptune_runtime but the lines"):
        patch("".join(lines), FIRST)


def test_a_file_that_is_not_python_is_an_error_with_its_line():
    with pytest.raises(InputError, match=r"model\.py:2: not valid Python"):
        patch("import torch\nclass Net(:\n", FIRST)


def test_a_class_that_is_gone_is_an_error():
    with pytest.raises(InputError, match=r"model\.py does not define the class Net"):
        patch(SOURCE.replace("class Net", "class Other"), FIRST)


def test_a_function_that_is_gone_is_an_error():
    with pytest.raises(InputError, match=r"neither the model's class nor a function"):
        patch_source(SOURCE, plan_of(FIRST), spec_for(FIRST, top_class=None, make_model="build"))


def test_an_op_that_is_gone_is_an_error():
    with pytest.raises(PlanError, match=r"pins Net\.forward#pow\.0, which model\.py does not have"):
        patch(SOURCE.replace(" ** 2", ""), FIRST)


def test_an_op_that_assigns_cannot_be_pinned():
    source = SOURCE.replace("        return self.b(x).softmax(-1) ** 2", "        x **= 2\n        return x")
    with pytest.raises(PlanError, match=r"pins Net\.forward#pow\.0"):
        patch(source, {"a": "bf16", "#pow.0": PIN})


def test_instances_of_a_class_must_agree_about_a_line():
    sites = {"a#exp.0": PIN, "b#exp.0": {"format": "bf16", "how": "follow"}}
    spec = spec_of(sites, codes=dict.fromkeys(sites, "Net.forward#softmax.0"), top_class="Net")
    with pytest.raises(PlanError, match=r"'a#exp.0' and 'b#exp.0' are one source line, Net\.forward#softmax\.0"):
        patch_source(SOURCE, plan_of(sites), spec)


def test_the_check_notices_a_patch_that_changed_something_else():
    plan, spec = plan_of(FIRST), spec_for(FIRST)
    patched = patch_source(SOURCE, plan, spec)
    check_patched(SOURCE, patched, plan, spec)
    for wrong in (
        patched.replace("output.mean()", "output.sum()"),
        patched.replace('"a": "bf16"', '"a": "fp16"'),
        patched.replace("fp32(F.softmax)", "F.softmax"),
    ):
        assert wrong != patched
        with pytest.raises(AssertionError):
            check_patched(SOURCE, wrong, plan, spec)


def test_an_op_that_assigns_is_refused_with_how_to_write_it():
    source = SOURCE.replace("        return self.b", "        x *= 2\n        return self.b")
    spec = spec_of({"#mul.0": PIN}, codes={"#mul.0": "Net.forward#mul.0"}, modules=["a", "b"], top_class="Net")
    with pytest.raises(PlanError, match=r"pins Net\.forward#mul\.0, which model\.py writes as an assignment"):
        patch_source(source, plan_of({"#mul.0": PIN}), spec)


def _after(*shape: int) -> Site:
    return Site(f"{LOSS}#mul.0", "mul", "function", LOSS, inputs=(TensorMeta(shape, "float32"),))


@pytest.mark.parametrize(
    ("site", "keeps_loss", "is_said"),
    [
        (Site("criterion", "cross_entropy", "module", "criterion"), False, True),
        (Site("#cross_entropy.0", "cross_entropy", "function", ""), False, True),
        (Site("#mse_loss.0", "mse_loss", "function", ""), True, True),
        (Site("#mse_loss.0", "mse_loss", "function", ""), False, False),
        (Site("#neg.0", "neg", "function", ""), True, True),
        (_after(), True, True),
        (_after(4, 3), True, False),
        (Site(f"{LOSS}#cross_entropy.0", "cross_entropy", "function", LOSS, inputs=(TensorMeta((4, 3), "float32"),)),
         True, False),
    ],
    ids=["a module of the model", "a call in the forward", "kept, by torch's", "not kept, which is not compiled",
         "kept, by hand", "kept, scaled by loss_fn", "kept, loss_fn makes another", "loss_fn alone"],
)  # fmt: skip
def test_a_compiled_loss_is_said_to_the_model_where_its_forward_makes_one(
    site: Site, keeps_loss: bool, is_said: bool
) -> None:
    source = (
        "from torch import nn\n\n\ndef make_model():\n    return nn.Sequential(nn.Linear(2, 2))\n\n\n"
        "def loss_fn(output, batch):\n    return output[1]\n"
    )
    spec = PatchSpec.from_sites(
        "model.py", [site], module_paths=[("", 0), ("0", 1)], make_model="make_model", loss="loss_fn",
        keeps_loss=keeps_loss,
    )  # fmt: skip
    plan = Plan({"0": SitePlan(Format.BF16)}, loss_compile=True)
    assert ("compile_loss=True" in patch_source(source, plan, spec)) is is_said


def test_a_compiled_loss_names_its_backend() -> None:
    source = (
        "from torch import nn\n\n\ndef make_model():\n    return nn.Sequential(nn.Linear(2, 2))\n\n\n"
        "def loss_fn(output, batch):\n    return output.sum()\n"
    )
    site = Site("0", "linear", "module", "0")
    spec = PatchSpec.from_sites(
        "model.py", [site], module_paths=[("", 0), ("0", 1)], make_model="make_model", loss="loss_fn"
    )
    plan = Plan({"0": SitePlan(Format.BF16)}, loss_compile=True)
    assert '@loss_in("fp32", compile=True)' in patch_source(source, plan, spec)
    other = dataclasses.replace(plan, backend="aot_eager")
    assert '@loss_in("fp32", compile=True, backend="aot_eager")' in patch_source(source, other, spec)
    kept = dataclasses.replace(spec, loss=None)
    assert 'compile_loss=True, backend="aot_eager")' in patch_source(source, other, kept)
    assert Plan.from_json(other.to_json("amptune 0")).backend == "aot_eager"
    assert "compile" not in plan.to_json("amptune 0"), "inductor goes without saying"
