"""The report of a tune says what was found and why, holds together as a page, and takes whatever a search leaves."""

import base64
import dataclasses
import hashlib
import itertools
import json
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amptune.core.choice import BF16, FP32, TF32
from amptune.core.formats import Format
from amptune.core.graph import PrecisionGraph, Site
from amptune.core.plan import Plan, ScalerConfig, SitePlan
from amptune.core.scaler import GradientRecord, GradientStep, choose_scaler, scaler_json
from amptune.core.tables import CostTable, SiteCost
from amptune.report.tune_html import tune_report
from amptune.report.tune_sites import site_rows
from tests.report.tune_sample import Page, entry, plan, result, trial, trials, won


def read(data, the_plan=None, graph=None, **more):
    return Page(tune_report(data, the_plan or plan(), graph, **more))


# What it says


def test_a_won_search_is_told_with_its_confidence():
    page = read(won(attribution={"full": 1.39, "without_loss_and_layout": 1.11}))
    assert page.one("h1").text == "A plan is 1.39 times as fast as the best stock recipe"
    assert "takes 85.50 ms instead of 118.9 ms with autocast-bf16" in page.text
    assert "at least 1.36 times with 95% confidence" in page.text
    assert "With the formats alone" in page.text
    assert "1.11 times as fast" in page.text


def test_a_gain_that_is_all_of_the_formats_leaves_no_rest():
    page = read(won(attribution={"full": 1.39, "without_loss_and_layout": 1.3899}))
    assert "memory format as written) it is as fast: the gain is theirs." in page.text
    assert "the rest comes from" not in page.text


def test_the_attribution_is_left_out_when_it_was_not_measured():
    assert "formats alone" not in read(won()).text


def test_what_compiling_by_blocks_gives_is_told_apart_from_the_formats():
    share = {"full": 1.39, "without_loss_and_layout": 1.11, "stock_in_parts": 0.96}
    page = read(won(compiled="parts", attribution=share))
    (told,) = [each for each in page.all("p", "lede") if "formats alone" in each.text]
    assert "memory format as written, compiled as the recipe is" in told.text
    eager = won(compiled="parts", attribution=share)
    eager["repeats"] = {**eager["repeats"], "stock_in_eager": True}
    assert "memory format as written, the model compiled whole" in read(eager).text, "the recipe is not compiled"
    assert told.text.endswith("the rest comes from those choices and from how it is compiled.")
    assert "the best stock recipe is 0.96 times as fast as compiled whole" in page.text
    assert "compiles blocks of the model" not in read(won(compiled="whole")).text
    lost = result(trials(), (1, 118.9), (1, 118.9), verdict="stock", compiled="parts")
    assert "What was written compiles blocks of the model, each by itself" in read(lost).text


def test_a_loss_that_is_rounded_all_the_same_is_not_said_to_be_in_fp32():
    in_fp32 = dataclasses.replace(plan(), loss_format=Format.FP32)
    assert "loss computed in fp32" in read(won(), in_fp32).text
    page = read(won(rounded_loss="bf16"), in_fp32)
    assert "loss comes out in bf16" in page.text
    assert "loss computed in" not in page.text


@pytest.mark.parametrize(
    ("recipe", "headline"),
    [
        ("autocast-bf16", "No plan beats the stock recipe autocast-bf16"),
        ("fp32", "Nothing gained, FP32 is the fastest valid choice"),
    ],
)
def test_a_lost_search_says_so(recipe, headline):
    found = [one for one in trials() if one["recipe"] in (None, "fp32", recipe)]
    number = next(one["number"] for one in found if one["recipe"] == recipe)
    page = read(result(found, (number, 99.0), (number, 99.0), "stock"), Plan())
    assert page.one("h1").text == headline
    assert "16 plans were tried, 12 of them valid, and none proved faster beyond the noise" in page.text
    assert "times as fast" not in page.text
    assert "their lead did not hold up" in page.text, "trial 19 took 85 ms"


def test_a_search_that_tried_no_plan_claims_nothing_of_plans():
    found = trials()[:2]
    page = read(result(found, (1, 118.3), (1, 118.3), "stock"), Plan())
    assert page.one("h1").text == "No plan was tried; autocast-bf16 is the fastest valid one of 2 recipes"
    page = read(result(found[:1], (0, 312.4), (0, 312.4), "stock"), Plan())
    assert page.one("h1").text == "No plan was tried; fp32 is the only recipe measured"


def test_no_repeat_is_claimed_where_no_trial_looked_faster():
    found = trials()[:4]
    assert "hold up" not in read(result(found, (1, 99.0), (1, 99.0), "stock"), Plan()).text


@pytest.mark.parametrize(("gain", "is_open"), [(1.94, True), (0.97, False)])
def test_a_plan_that_may_be_faster_than_the_recipe_is_told(gain, is_open):
    missed = {"trial": 19, "speedup": gain, "speedup_low": 0.62, "rounds": 2, "more_rounds_by": "--timeout"}
    page = read(result(trials(), (0, 99.0), (0, 99.0), "stock", missed=missed), Plan())
    assert f"{gain:.2f} times as fast, at least 0.62 times with 95% confidence" in page.text
    assert ("It may be faster all the same: a larger --timeout leaves time" in page.text) is is_open
    assert ("is the fastest valid choice" in page.text) is not is_open


def test_without_a_valid_run_nothing_is_claimed():
    found = [trial(0, "stock", recipe="fp32", reason="the loss is nan"), trial(1, "front", reason="it crashed")]
    data = won() | {"verdict": "invalid", "stock": [], "best": None, "repeats": None, "trials": found}
    page = read(data, Plan())
    assert page.one("h1").text == "No valid plan was found"
    assert "×" not in page.one("header").text
    assert page.rows("Trials by number") == [["fp32", "failed", "the loss is nan"], ["1", "failed", "it crashed"]]


def test_a_speedup_over_fp32_is_not_shown_twice():
    page = read(result(trials(), (19, 85.5), (0, 312.4)))
    assert page.one("header").text.count("Against fp32") == 1


def test_conditions_of_the_measurement_are_named():
    text = read(won(notes=["dropout is on"])).text
    for fact in ("NVIDIA H100 80GB HBM3", "capability 9.0", "80.00 GiB", "580.65.06", "torch 2.13.0", "eager",
                 "20 in 2 min 11 s", "20 training steps on the batches of train_batches()", "0.030% loss gap",
                 "0.500% loss gap", "dropout is on", "model.py"):  # fmt: skip
        assert fact in text
    assert "single batch" not in text


def test_a_single_batch_is_warned_about_at_the_top():
    page = read(won(quality_data="single-batch"))
    assert "judged on a single batch" in page.one("header").text


def test_failed_and_invalid_runs_are_listed_by_reason():
    assert read(won()).rows("Trials by number") == [
        ["autocast-fp16", "invalid", "the scaler skipped 14 of 60 steps"],
        ["fp8-tensorwise", "failed", "OutOfMemoryError: CUDA out of memory"],
        ["4", "slow", "a step takes over 3x the best so far"],
        ["8, 12, 16", "invalid", "loss gap +1.100%, with its noise up to +1.200%, allowed 0.500%"],
    ]


def test_all_trials_are_in_a_table():
    rows = read(won()).rows("All trials")
    assert [row[0] for row in rows] == [str(number) for number in range(20)]
    assert rows[0] == ["0", "fp32", "312.4 ms", "–", "+0.000%", "22.00 GiB", "valid"]
    assert rows[3][2:] == ["–", "–", "–", "–", "failed: OutOfMemoryError: CUDA out of memory"]


# Charts


def test_bars_show_every_stock_recipe_and_the_plan_with_quartiles():
    page = read(won())
    chart = page.charts()["Step time of the stock recipes and the result"]
    for words in ("fp32", "312.4 ms", "118.9 ms", "not valid, 117.0 ms", "plan (written)", "85.50 ms",
                  "plan: 85.50 ms, quartiles 83.79 ms to 87.21 ms, 50 steps", "failed: no step time"):  # fmt: skip
        assert words in chart.text
    assert len(page.all("rect", "bar")) == 4
    assert len(page.all("rect", "invalid")) == 1


def test_bars_and_whiskers_stand_at_their_values():
    page = read(won())
    top = 312.4 * 1.02
    widths = [float(bar.attributes["width"].rstrip("%")) for bar in page.all("rect", "bar")]
    assert widths == pytest.approx([100 * ms / top for ms in (312.4, 118.9, 117.0, 85.5)], abs=0.01)
    ends = [(w.attributes["x1"], w.attributes["x2"]) for w in page.all("line", "whisker")][:1]
    assert ends == [(f"{100 * 0.98 / 1.02:.2f}%", "100.00%")]


def test_a_recipe_that_was_given_up_is_not_called_failed():
    found = [one | {"state": "slow"} if one["recipe"] == "fp8-tensorwise" else one for one in trials()]
    chart = read(result(found, (19, 85.5), (1, 118.9))).charts()["Step time of the stock recipes and the result"]
    assert "slow: no step time" in chart.text


def test_bars_do_not_claim_repeats_that_were_not_made():
    found = trials()
    assert "measured again" in read(won()).text
    assert "measured again" not in read(result(found, (1, None), (1, None), "stock") | {"best": entry(found[1])}).text


def test_kind_and_validity_differ_in_shape():
    page = read(won())
    shapes = {
        (kind, valid): {m.attributes["href"] for m in page.marks("Trial history", kind) if valid in m.classes}
        for kind, valid in [("kind-square", "valid"), ("kind-diamond", "valid"), ("kind-circle", "valid")]
    }
    assert [len(found) for found in shapes.values()] == [1, 1, 1]
    assert len(set.union(*shapes.values())) == 3
    assert len(page.marks("Trial history", "invalid")) == 4
    assert len(page.marks("Trial history", "lost")) == 2
    assert len(page.marks("Trial history", "ring")) == 1


@pytest.mark.parametrize(
    ("chart", "count"),
    [
        ("Step time against loss gap", 18),
        ("Step time against peak memory", 18),
        ("Trial history", 20),
        ("Predicted against measured step time", 15),
    ],
)
def test_each_chart_has_a_mark_for_each_trial_it_can_show(chart, count):
    assert len(read(won()).marks(chart, "mark")) == count


def test_what_is_off_the_scale_gets_an_arrow():
    page = read(won())
    arrows = [mark.attributes["href"] for mark in page.marks("Step time against loss gap", "beyond")]
    assert arrows.count("#shape-up") == 1, "the gap of 3.1 %"
    assert arrows.count("#shape-right") == 1, "fp32 takes 312 ms"
    assert "2 trials lie beyond the edge" in page.text


def test_the_prediction_error_is_told():
    assert "Median error 2.0% over 15 plans" in read(won()).text


def test_predictions_are_compared_with_what_a_step_took_beside_an_earlier_one():
    """As the error in result.json: 11.0 % there was 3.5 % on the page, where trials had come in fast moments."""
    data = won()
    for one in data["trials"]:
        if one["predicted_ms"] and one["step_ms"]:
            one["paired_ms"] = one["predicted_ms"] / 1.1
    page = read(data)
    assert "Median error 10.0% over 15 plans" in page.text
    assert "by the trial it was timed beside" in page.text


def test_charts_have_the_steps_that_trials_are_ranked_by():
    """A yardstick's own trial met a slow moment; trial 10, timed beside another one, a fast one."""
    data = won()
    data["trials"][10] |= {"paired_ms": 88.0, "usual_ms": 93.0}
    data["trials"][18] |= {"usual_ms": 70.0}
    page = read(data)
    assert "the best valid one took 70.00 ms" in page.text
    assert "2 on the Pareto front" in page.text, "trial 18, and autocast's smaller loss gap"
    assert "(93.00 ms by the trial it was timed beside)" in page.text
    assert "(70.00 ms by what was timed beside it)" in page.text


def test_memory_is_left_out_where_it_is_not_known():
    page = read(result(trials(memory=False), (19, 85.5), (1, 118.9)))
    assert "Step time against peak memory" not in page.charts()
    assert "GiB" not in " ".join(itertools.chain(*page.rows("All trials")))
    assert "Peak memory" not in page.text


# Sites


def graph_of(*ids):
    graph = PrecisionGraph()
    for name in ids:
        graph.add_site(Site(name, "linear", "module", name.partition("#")[0]))
    return graph


def test_every_site_is_in_the_table_with_format_and_reason():
    rows = read(won()).rows("Sites")
    assert len(rows) == 8
    assert ["blocks.1.fc", "bf16", "reason of fc 1"] in rows
    assert ["blocks.2.fc", "fp32", "reason of fc 2"] in rows
    assert rows[-1] == ["head output padded to a multiple of 64", "bf16", "padded from 257 to 320"]


def test_sites_follow_the_order_of_the_graph_which_adds_what_it_knows():
    names = list(plan().sites)
    rows = read(won(), graph=graph_of(*reversed(names), "unplanned")).rows("Sites")
    assert [row[0].split()[0] for row in rows] == names[::-1]
    assert all("linear" in row[0] for row in rows)


def test_sites_that_the_graph_does_not_know_are_kept():
    rows = read(won(), graph=graph_of("head")).rows("Sites")
    assert len(rows) == 8
    assert rows[0][0].startswith("head")


def test_blocks_that_are_alike_are_shown_once_in_the_tree():
    tree = next(e for e in read(won(), plan(12)).all("ul", "tree"))
    words = " ".join(tree.text.split())
    assert "0–10 (11 alike, averaged)" in words
    assert "padded to a multiple of 64" in words
    assert words.count("softmax") == 2, "once for the first eleven blocks, once for the last"


def test_saved_time_is_against_fp32_and_may_be_negative():
    costs = CostTable(
        {
            "blocks.0.fc": {FP32: SiteCost(5.0), BF16: SiteCost(1.25)},
            "blocks.1.fc": {FP32: SiteCost(1.0), BF16: SiteCost(1.5)},
            "head": {FP32: SiteCost(float("inf")), BF16: SiteCost(1.5)},
            "embed": {FP32: SiteCost(1.0), BF16: SiteCost(1.5)},
        },
        {},
    )
    page = read(won(), costs=costs)
    saved = {row[0].split()[0]: row[2] for row in page.rows("Sites")}
    assert saved["blocks.0.fc"] == "3.75 ms"
    assert saved["blocks.1.fc"] == "-0.500 ms"
    assert saved["head"] == saved["embed"] == "–"
    words = page.all("ul", "tree")[0].text
    assert words.count("saves 3.25 ms") == 1, "both blocks together"
    assert words.count("saves 1.62 ms") == 2, "the mean of the two blocks, and of their sites"


def test_saved_time_is_against_tf32_where_the_plan_allows_that():
    costs = CostTable({"head": {FP32: SiteCost(5.0), TF32: SiteCost(2.0), BF16: SiteCost(1.5)}}, {})
    for tf32, expected in ((False, 3.5), (True, 0.5)):
        rows = site_rows(dataclasses.replace(plan(), tf32=tf32), None, costs)
        assert {row.id: row.saved for row in rows}["head"] == expected


def test_a_part_that_holds_one_part_shares_its_line():
    page = read(won(), Plan({"a.b.c": SitePlan(Format.BF16), "a.b.d#exp.0": SitePlan(Format.FP32)}))
    tree = page.elements[page.elements.index(page.all("ul", "tree")[0]) :]
    assert [e.text for e in tree if e.tag == "code"][:3] == ["a.b", "c", "d#exp.0"]


def test_hundreds_of_sites_start_folded():
    sites = {
        f"a.b{i}.c{j}": SitePlan(Format.BF16 if (i + j) % 2 else Format.FP32) for i in range(20) for j in range(20)
    }
    page = read(won(), Plan(sites))
    assert len(page.rows("Sites")) == 400
    inner = page.elements[page.elements.index(page.all("ul", "tree")[0]) :]
    folded = [e for e in inner if e.tag == "details" and "open" not in e.attributes]
    assert len(folded) == 20
    assert "open" not in folded[0].attributes


def test_a_plan_without_sites_says_so():
    page = read(won(), Plan(tf32=True))
    assert "The plan changes no site" in page.text
    assert "TF32 for what stays in FP32: on" in page.text
    assert not page.all("ul", "tree")


def test_one_autocast_region_is_told_in_a_sentence():
    page = read(won(), Plan({"": SitePlan(Format.BF16, how="autocast", why="nothing beat it")}))
    assert "bf16 in one autocast region: nothing beat it" in page.text
    assert not page.all("ul", "tree")


def test_a_module_that_holds_other_sites_shows_its_own_format():
    page = read(won(), Plan({"attn": SitePlan(Format.FP16), "attn.proj": SitePlan(Format.BF16)}))
    badges = [e.text for e in page.elements[page.elements.index(page.all("ul", "tree")[0]) :] if "badge" in e.classes]
    assert badges[0] == "fp16"
    assert "bf16" in badges


# The scaler


def scaled_plan(record):
    return Plan({"fc": SitePlan(Format.FP16)}, scaler=choose_scaler(record))


RECORD = GradientRecord(tuple(GradientStep(20.5 + i % 3, {20: 1, 0: 50, -45: 49}) for i in range(8)))


def test_a_scaler_is_shown_with_its_simulation_against_the_defaults():
    the_plan = scaled_plan(RECORD)
    scaler = scaler_json(the_plan.scaler, RECORD)
    page = read(won(), the_plan, scaler=scaler, record=RECORD)
    rows = {row[0]: row[1:] for row in page.rows("Simulated on the gradients of 8 recorded steps")}
    assert rows["steps skipped for an overflow"] == ["0", str(scaler["simulation"]["default"]["skipped_steps"])]
    assert "init_scale=0.0009765625, growth_factor=2," in page.text
    assert the_plan.scaler.init_scale == 0.0009765625


def test_gradients_are_drawn_against_the_range_of_each_format():
    the_plan = scaled_plan(RECORD)
    page = read(won(), the_plan, scaler=scaler_json(the_plan.scaler, RECORD), record=RECORD)
    chart = page.charts()["Gradients against the range of each format"]
    for words in ("fp16: 2⁻²⁴ to 65,504", "bf16: 2⁻¹³³", "fp8_e4m3: 2⁻⁹ to 448", "2²⁰ to 2²¹: 1.000% of the gradient"):
        assert words in chart.text


def test_without_a_histogram_the_largest_gradients_are_drawn():
    the_plan = scaled_plan(RECORD)
    page = read(won(), the_plan, scaler=scaler_json(the_plan.scaler, RECORD))
    assert "largest of each step" in page.charts()["Gradients against the range of each format"].text


@pytest.mark.parametrize("steps", [(), (float("inf"),), (float("-inf"),), (0.0,)])
def test_records_without_a_range_are_taken(steps):
    record = GradientRecord(tuple(GradientStep(amax) for amax in steps))
    the_plan = scaled_plan(record)
    page = read(won(), the_plan, scaler=scaler_json(the_plan.scaler, record), record=record)
    assert "torch.amp.GradScaler(" in page.text
    assert ("Gradients against the range of each format" in page.charts()) == (steps == (0.0,))


def test_without_fp16_no_scaler_is_asked_for():
    assert "needs no loss scaling" in read(won()).text
    off = Plan({"fc": SitePlan(Format.FP16)}, scaler=ScalerConfig(enabled=True))
    assert "not simulated" in read(won(), off).text


# The page itself


def hostile(text='"><script>alert(1)</script>&<b>'):
    found = [one | {"reason": text if one["reason"] else ""} for one in trials()]
    data = result(found, (19, 85.5), (1, 118.9), notes=[text], mode=text, quality_data=text, tool=text)
    data["device"] = {"gpu": text, "driver": text}
    data["stock"][0]["recipe"] = text
    return data, Plan({text: SitePlan(Format.BF16, why=text), f"a.{text}.b": SitePlan(Format.FP32)}, target=text)


def test_what_users_control_is_escaped():
    data, the_plan = hostile()
    text = tune_report(data, the_plan)
    page = Page(text)
    assert len(page.all("script")) == 1
    assert not page.all("b")
    assert "alert(1)" not in page.one("script").text
    assert page.text.count("<script>alert(1)</script>&<b>") > 8


def test_the_page_needs_nothing_from_elsewhere():
    text = tune_report(*hostile("https://example.org/x.js"))
    page = Page(text.replace("https://example.org/x.js", ""))
    links = [e.attributes[name] for e in page.elements for name in ("href", "src", "action") if name in e.attributes]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not {e.tag for e in page.elements} & {"link", "img", "iframe", "object", "embed", "image", "base"}
    assert not re.search(r"https?:|@import|url\((?!#)", page.one("style").text + page.one("script").text)


def test_links_inside_the_page_lead_somewhere_and_ids_are_unique():
    page = read(won(), scaled_plan(RECORD))
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    links = {e.attributes["href"] for e in page.elements if "href" in e.attributes}
    labels = {f"#{e.attributes['aria-labelledby']}" for e in page.elements if "aria-labelledby" in e.attributes}
    assert links | labels <= {f"#{name}" for name in ids}


def test_the_policy_allows_this_script_alone():
    page = read(won())
    policy = next(e.attributes["content"] for e in page.all("meta") if "http-equiv" in e.attributes)
    digest = base64.b64encode(hashlib.sha256(page.one("script").text.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_every_chart_has_a_title_and_a_description():
    page = read(won(), scaled_plan(RECORD), scaler=scaler_json(scaled_plan(RECORD).scaler, RECORD), record=RECORD)
    charts = page.charts()
    assert len(charts) == 6
    for name, chart in charts.items():
        after = page.elements[page.elements.index(chart) + 1 :]
        assert [after[0].tag, after[0].text] == ["title", name]
        assert after[1].tag == "desc"
        assert after[1].text


def test_the_page_is_the_same_each_time():
    assert tune_report(won(), plan()) == tune_report(json.loads(json.dumps(won())), plan())


def test_a_name_that_no_file_can_hold_is_replaced():
    tune_report(won(), Plan({"a\udcff": SitePlan(Format.BF16)}, target="\udcff.py")).encode()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"verdict": "stock", "trials": None, "stock": None, "device": None, "seconds": None},
        result([trial(0, "stock", 2.5, recipe="fp32")], (0, 2.5), (0, 2.5), "stock", tolerance=0.0, noise=0.0),
        result([trial(0, "stock", 0.0, recipe="fp32")], (0, None), (0, None), "stock"),
        result([trial(0, "stock", 1.0, recipe="fp32"), trial(1, "front", 1.0, predicted_ms=0.0)], (1, 1.0), (0, 1.0)),
        won(tolerance=0.0, noise=0.0, attribution=None, repeats=None),
    ],
    ids=["empty", "nulls", "one trial", "zero time", "equal times", "no tolerance"],
)
@pytest.mark.parametrize("the_plan", [Plan(), plan(), Plan({"": SitePlan(Format.FP32)})], ids=["none", "sites", "root"])
def test_sparse_results_give_a_whole_page(data, the_plan):
    page = read(data, the_plan)
    assert page.one("h1").text
    assert "nan" not in page.text.lower().split()
    assert "inf" not in page.text.lower().split()


NUMBERS = st.none() | st.floats(0, 1e12) | st.sampled_from([0.0, float("inf"), float("nan")])
TRIALS = st.lists(
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["stock", "front", "search", "repeat"]), "reason": st.text(max_size=9),
         "state": st.sampled_from(["valid", "invalid", "failed", "slow"]), "recipe": st.none() | st.text(max_size=5),
         "predicted_ms": NUMBERS, "memory_bytes": NUMBERS, "loss_gap": NUMBERS | st.floats(-1, 1),
         "step_ms": st.none() | st.fixed_dictionaries({"median": NUMBERS, "low": NUMBERS, "high": NUMBERS})}
    ), max_size=6,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(TRIALS, st.sampled_from(["plan", "stock", "invalid"]), NUMBERS, NUMBERS)
def test_any_trials_give_a_whole_page(found, verdict, tolerance, noise):
    numbered = [one | {"number": number} for number, one in enumerate(found)]
    stock = [one | {"valid": one["state"] == "valid", "trial": one["number"]} for one in numbered if one["recipe"]]
    data = {"verdict": verdict, "trials": numbered, "stock": stock, "best": stock[0] if stock else None,
            "tolerance": tolerance, "noise": noise}  # fmt: skip
    page = read(data)
    for element in page.elements:
        for name in ("x", "y", "x1", "x2", "y1", "y2", "width", "height"):
            value = element.attributes.get(name) or "0"
            assert 0 <= abs(float(value.rstrip("%"))) < 1e4, (element.tag, name, value)


# Colours


def schemes():
    css = read(won()).one("style").text
    light, dark = re.findall(r":root\s*{([^}]*)}", css)
    return {name: dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", text)) for name, text in
            (("light", light), ("dark", dark))}  # fmt: skip


def contrast(one, other):
    """WCAG 2 contrast ratio of two colours."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_enough_contrast(scheme):
    colours = schemes()[scheme]
    formats = [member.label for member in Format]
    for name in ("text", "muted", "bad"):
        assert contrast(colours[name], colours["page"]) >= 4.5, name
        assert contrast(colours[name], colours["panel"]) >= 4.5, name
    for name in formats:
        assert contrast(colours["on-format"], colours[name]) >= 4.5, name
    for name in ("accent", "good", "bad", "axis", *formats):
        assert contrast(colours[name], colours["page"]) >= 3, name


def test_both_schemes_set_every_colour_that_is_used():
    style = read(won()).one("style").text
    used = set(re.findall(r"var\(--([\w-]+)\)", style)) - {"height", "format", "heat", "width"}
    for colours in schemes().values():
        assert set(colours) >= used - {"fp8_e4m3", "fp8_e5m2"}
        assert {"fp8_e4m3", "fp8_e5m2"} <= set(colours)


def test_reading_results_needs_neither_torch_nor_networkx():
    code = "import sys, amptune.report.tune_html; print({'torch', 'optuna', 'networkx', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
