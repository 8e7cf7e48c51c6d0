"""The report in a real browser: its script runs under its own policy, and the tables sort and filter."""

import pytest

from amptune.core.choice import BF16, FP32
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.core.tables import CostTable, SiteCost
from amptune.report.tune_html import tune_report
from tests.report.browser import ask, in_a_narrow_window
from tests.report.tune_sample import plan, won

pytestmark = pytest.mark.full


def test_the_script_runs_under_the_page_s_own_policy(opened):
    assert 'data-script="ready"' in opened(tune_report(won(), plan()))


def test_the_policy_stops_any_other_script(opened):
    text = tune_report(won(), plan()).replace("</body>", "<script>document.title = 'broken in'</script></body>")
    assert "<title>broken in</title>" not in opened(text)


SITES = "[...document.querySelectorAll('table.sites tbody tr')]"


def click(column, times=1):
    return f"document.querySelectorAll('table.sites th button')[{column}].click()," * times


def costs():
    saved = {"blocks.0.fc": 9.0, "blocks.1.fc": 12.0, "head": 100.0}
    return CostTable({k: {FP32: SiteCost(v), BF16: SiteCost(1.0)} for k, v in saved.items()}, {})


def test_sites_sort_by_number_with_the_unknown_last(opened):
    text = tune_report(won(), plan(), costs=costs())
    order = f"{SITES}.slice(0, 4).map((row) => row.cells[2].textContent)"
    assert ask(opened, text, f"({click(2)} {order})") == [[], ["8.00 ms", "11.00 ms", "99.00 ms", "–"]]
    assert ask(opened, text, f"({click(2, 2)} {order})") == [[], ["99.00 ms", "11.00 ms", "8.00 ms", "–"]]


def test_sites_sort_by_name_with_block_10_after_block_9(opened):
    names = f"{SITES}.map((row) => row.cells[0].querySelector('code').textContent)"
    the_plan = Plan({f"b.{i}": SitePlan(Format.BF16) for i in (10, 9, 100, 1)})
    problems, order = ask(opened, tune_report(won(), the_plan), f"({click(0)} {names})")
    assert (problems, order) == ([], ["b.1", "b.9", "b.10", "b.100"])


def test_the_filter_keeps_rows_that_hold_all_words(opened):
    the_plan = plan(6)
    text = tune_report(won(), the_plan)
    box = "document.querySelector('#sites').parentElement.querySelector('.filter input')"
    typed = f"{box}.value = 'BLOCKS.1 bf16', {box}.dispatchEvent(new Event('input'))"
    shown = f"{SITES}.filter((row) => row.checkVisibility()).map((row) => row.cells[0].textContent.trim())"
    status = f"{box}.parentElement.textContent"
    problems, rows, words = ask(opened, text, f"...({typed}, [{shown}, {status}])")
    assert problems == []
    assert rows == ["blocks.1.fc"]
    assert words == f"1 of {len(the_plan.sites)} shown"


def test_nothing_sticks_out_of_a_narrow_window(opened):
    client, scroll, outside = in_a_narrow_window(opened, tune_report(won(), plan(40)))
    assert client > 300
    assert scroll <= client
    assert outside == []
