import pytest

from amptune.core.formats import Format
from amptune.core.pins import following_codes, pinned_codes
from amptune.core.plan import Plan, SitePlan
from amptune.errors import PlanError

PIN = SitePlan(Format.FP32, how="source", why="it sums")
FOLLOW = SitePlan(Format.FP32, how="follow")
CODES = {f"blocks.{n}#sum.0": "Block.forward#sum.0" for n in range(3)} | {"#exp.0": ""}


def code_of(name: str) -> str:
    return CODES.get(name) or name


def test_a_line_is_pinned_once_for_all_instances_of_a_class() -> None:
    plan = Plan({"blocks.0#sum.0": PIN, "blocks.1#sum.0": SitePlan(Format.FP32, how="source"), "#exp.0": FOLLOW})
    assert pinned_codes(plan, code_of) == {"Block.forward#sum.0": PIN}
    assert following_codes(plan, CODES) == {"#exp.0"}


def test_instances_that_disagree_about_a_line_are_named() -> None:
    with pytest.raises(PlanError, match=r"'blocks.0#sum.0' and 'blocks.2#sum.0' are one source line, Block.forward"):
        pinned_codes(Plan({"blocks.0#sum.0": PIN, "blocks.2#sum.0": FOLLOW}), code_of)
