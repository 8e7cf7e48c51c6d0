"""The page of an analysis in a real browser: sorting, filtering, folding by keyboard, both colour schemes, a phone."""

import dataclasses

import pytest

from amptune.report.analyze_data import Spread
from amptune.report.analyze_html import analyze_report
from tests.report.analyze_sample import block, sample
from tests.report.browser import ask, in_a_narrow_window

pytestmark = pytest.mark.full
TABLE = "document.querySelector('#sites').parentElement.querySelector('table')"
ROWS = f"[...{TABLE}.tBodies[0].rows]"


def test_the_script_runs_under_the_page_s_own_policy(opened):
    assert 'data-script="ready"' in opened(analyze_report(sample()))


def test_the_sites_sort_by_time_both_ways(opened):
    click = f"{TABLE}.tHead.rows[0].cells[2].querySelector('button').click()"
    times = f"{ROWS}.map((row) => Number(row.cells[2].dataset.sort))"
    problems, up, down = ask(opened, analyze_report(sample()), f"...({click}, [{times}, ({click}, {times})])")
    assert problems == []
    assert up == sorted(up)
    assert down == sorted(up, reverse=True)
    assert len(up) == 24


def test_the_risk_columns_sort_by_how_bad_it_is(opened):
    click = f"{TABLE}.tHead.rows[0].cells[8].querySelector('button').click()"
    first = f"{ROWS}[0].cells[0].textContent"
    problems, name = ask(opened, analyze_report(sample()), f"({click}, {click}, {first})")
    assert problems == []
    assert name.startswith("layers.3#exp.0")


def test_a_thousand_sites_are_filtered_and_sorted_without_a_wait(opened):
    box = "document.querySelector('#sites').parentElement.querySelector('.filter input')"
    typed = f"{box}.value = 'layers.29 exp', {box}.dispatchEvent(new Event('input'))"
    shown = f"{ROWS}.filter((row) => !row.hidden).length"
    click = f"{TABLE}.tHead.rows[0].cells[0].querySelector('button').click()"
    spent = f"(() => {{ const t = performance.now(); {typed}; {click}; return performance.now() - t; }})()"
    problems, milliseconds, count = ask(opened, analyze_report(sample(300)), f"...[{spent}, {shown}]")
    assert problems == []
    assert count == 11, "blocks 29 and 290 to 299"
    assert milliseconds < 2000


def test_parts_of_the_tree_fold_without_a_script_and_take_the_focus(opened):
    summary = "document.querySelector('.map summary')"
    toggled = (
        f"({summary}.focus(), {summary}.click(), [document.activeElement === {summary}, {summary}.parentElement.open])"
    )
    before = f"{summary}.parentElement.open"
    problems, opened_before, (focused, opened_after) = ask(opened, analyze_report(sample()), f"{before}, {toggled}")
    assert problems == []
    assert focused
    assert opened_before is not opened_after


def test_every_control_can_be_reached_by_keyboard(opened):
    controls = "[...document.querySelectorAll('button, input, summary, a, [tabindex]')]"
    problems, indices = ask(opened, analyze_report(sample()), f"{controls}.map((item) => item.tabIndex)")
    assert problems == []
    assert len(indices) > 20
    assert min(indices) >= 0


CONTRAST = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const parse = (text) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const linear = (v) => v <= .03928 * 255 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const mix = (top, under) => [0, 1, 2].map((i) => (top[3] * top[i] + (255 - top[3]) * under[i]) / 255);
  const page = parse(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll('.cell, .badge')].map((item) => {
    const style = getComputedStyle(item), back = mix(parse(style.backgroundColor), page);
    const [a, b] = [light(back), light(parse(style.color))].sort((x, y) => y - x);
    return (a + .05) / (b + .05); }); })()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_on_heat_cells_can_be_read_in_both_schemes(opened, scheme):
    text = analyze_report(sample())
    if scheme == "dark":
        text = text.replace("@media (prefers-color-scheme: dark)", "@media all")
    problems, ratios = ask(opened, text, CONTRAST)
    assert problems == []
    assert len(ratios) > 50
    assert min(ratios) >= 4.5


def test_nothing_sticks_out_of_a_narrow_window(opened):
    name = "encoder.layers.0.attention#scaled_dot_product_attention.0"
    long = dataclasses.replace(block(0)[2], id=name, op="scaled_dot_product_attention", spread=Spread(0.0, 2.0**21))
    data = sample(40)
    data = dataclasses.replace(data, sites=(*data.sites, long))
    client, scroll, outside = in_a_narrow_window(opened, analyze_report(data))
    assert client > 300
    assert scroll <= client
    assert outside == []
