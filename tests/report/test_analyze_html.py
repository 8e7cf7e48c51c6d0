"""The page of an analysis says what was found, holds together, and stays readable for a model of a thousand sites."""

import dataclasses
import html
import re
import time

import pytest

from amptune.core.formats import Format
from amptune.core.hardware import GPUS
from amptune.report.analyze_data import PageSite, Risk
from amptune.report.analyze_html import analyze_report
from tests.report.analyze_sample import KEPT, block, sample
from tests.report.tune_sample import Page


def read(data):
    return Page(analyze_report(data))


def test_the_headline_names_the_best_recipe_that_fits_and_counts_the_findings():
    words = read(sample()).one("h1").text
    assert words == "Autocast-bf16+fixed is predicted 5.00 times as fast as fp32 on h100; 1 error, 1 warning, 1 info"


def test_the_headline_says_what_is_too_close_to_call():
    table = sample().estimate["h100"]
    near = {"h100": table | {"autocast-fp16": table["autocast-bf16"]}}
    assert (
        "as fast as fp32 on h100 (too close to call: autocast-bf16, autocast-fp16)"
        in read(sample(estimate=near)).one("h1").text
    )


def test_each_gpu_has_its_fastest_recipes_beneath_the_table():
    page = read(sample())
    assert "Fastest on h100: autocast-bf16." in page.text
    assert "Fastest on t4: autocast-fp16." in page.text
    assert "`amptune bench` measures them" not in page.text
    table = sample().estimate["t4"]
    near = {"t4": table | {"autocast-fp16": table["fp32"]}}
    page = read(sample(estimate=near))
    assert "Too close to call on t4: fp32, autocast-fp16." in page.text
    assert "`amptune bench` measures them" in page.text


def test_a_model_that_gains_nothing_is_told_so():
    slow = {"h100": {name: entry | {"speedup": 1.0} for name, entry in sample().estimate["h100"].items()}}
    assert read(sample(estimate=slow, findings=())).one("h1").text == (
        "No recipe is predicted to beat fp32 on h100; no findings"
    )


def test_a_recipe_that_does_not_run_has_its_reason_and_is_never_the_best():
    none = dict.fromkeys(("step_ms", "memory_bytes", "speedup", "bound", "fits")) | {"reason": "G403 at model.py:7: no"}
    table = {
        name: none if name.startswith("autocast-bf16") else entry for name, entry in sample().estimate["h100"].items()
    }
    page = read(sample(estimate={"h100": table}))
    rows = {row[1]: row for row in page.rows("Recipes on each GPU")}
    assert rows["autocast-bf16"][2:] == ["–", "–", "–", "does not run: G403 at model.py:7: no"]
    assert "autocast-bf16+fixed" not in rows
    assert "bf16" not in page.one("h1").text


def test_every_recipe_of_every_gpu_has_a_row_but_idle_fixes():
    rows = read(sample()).rows("Recipes on each GPU")
    assert [row[:2] for row in rows] == [
        ["h100", "fp32"], ["h100", "autocast-bf16"], ["h100", "autocast-bf16+fixed"], ["h100", "fp8-tensorwise"],
        ["t4", "fp32"], ["t4", "autocast-fp16"],
    ]  # fmt: skip
    assert rows[2][2:5] == ["4.00 ms", "5.00×", "2.00 GiB"]
    assert rows[3][5] == "needs more than the GPU's memory"
    assert rows[5][5] == "bound by launches on the processor; the kernels alone take 9.00 ms"


def test_findings_come_worst_first_with_their_sites():
    rows = read(sample()).rows("Findings")
    assert [row[0] for row in rows] == ["error", "warning", "info"]
    assert rows[0][3] == "model.py:8 2 sites layers.3#exp.0, layers.4#exp.0".replace(" 2 sites ", "2 sites")


def test_blocks_that_are_alike_share_a_line_and_their_times_are_added_up():
    page = read(sample(8))
    rows = [" ".join(e.text.split()) for e in page.all("span", "row")]
    alike = next(text for text in rows if text.startswith("0–2"))
    assert "3 alike, added up" in alike
    of_one = 2.0 + 0.1 + 0.05 + 0.04
    assert f"{3 * of_one + 0.03:.2f}" in alike
    assert [e.text for e in page.all("code")].count("3") == 1, "block 3 differs and stands alone"


def test_the_worst_site_decides_the_cell_of_its_part():
    page = read(sample())
    cells = [e for e in page.all("span", "cell") if "risk-4" in e.classes]
    reasons = {e.attributes["title"] for e in cells if e.attributes.get("title")}
    assert reasons == {"fp16: G203: exp overflows fp16", "G203: exp overflows fp16"}
    assert all(e.text == "fails" for e in cells), "nobody has to tell it by the colour"


def test_the_table_of_sites_starts_with_the_largest_gain():
    rows = read(sample()).rows("Sites")
    assert rows[0][0].startswith("layers.5.fc")
    gains = [float(row[6]) for row in rows]
    assert gains == sorted(gains, reverse=True)
    assert len(rows) == 24


def test_charts_have_titles_and_words_for_those_who_do_not_see_them():
    charts = read(sample()).charts()
    assert set(charts) == {"Roofline of H100 SXM5 80GB", "Values on the formats' number lines"}
    assert "2 kinds of sites under autocast-bf16" in charts["Roofline of H100 SXM5 80GB"].attributes["aria-label"]


def test_the_roofline_has_a_mark_for_each_kind_of_site():
    assert len(read(sample()).marks("Roofline of H100 SXM5 80GB", "mark")) == 2


@pytest.mark.parametrize(
    "changes",
    [{"sites": ()}, {"findings": ()}, {"gpus": (GPUS["cpu"],), "gpu": None, "estimate": {}}],
    ids=["no sites", "no findings", "cpu alone"],
)
def test_what_is_missing_leaves_a_whole_page(changes):
    page = read(sample(**changes))
    assert page.one("h1").text
    assert {e.attributes["id"] for e in page.all("h2")} == {
        "recipes", "findings", "model", "roofline", "values", "sites", "setup",
    }  # fmt: skip


def test_names_from_the_model_cannot_break_the_page():
    evil = PageSite('a.<script>alert(1)</script>"', "linear", "gemm", "<b>", risks={"bf16": KEPT})
    text = analyze_report(sample(sites=(evil,), target='"><img src=x onerror=1>'))
    assert "<script>alert" not in text
    assert "<img" not in text
    Page(text)


def test_the_page_fetches_nothing():
    text = analyze_report(sample(40))
    assert not re.findall(r"https?://|\bsrc=|@import|url\(http", text)
    assert "default-src 'none'" in html.unescape(text)


def test_a_thousand_sites_make_a_page_of_bearable_size_in_bearable_time():
    start = time.process_time()
    text = analyze_report(sample(300))
    assert time.process_time() - start < 6
    assert len(text) < 2_500_000
    page = Page(text)
    assert len(page.rows("Sites")) == 1200
    assert len(page.all("span", "row")) < 60, "alike blocks are one line"


def test_every_risk_has_its_own_word():
    assert len({risk.words for risk in Risk}) == len(Risk)


def test_the_names_of_the_rooflines_levels_lie_above_the_marks():
    page = read(sample())
    marks = [page.elements.index(mark) for mark in page.marks("Roofline of H100 SXM5 80GB", "mark")]
    names = [index for index, e in enumerate(page.elements) if "above" in e.classes]
    assert [page.elements[index].text.split()[0] for index in names] == ["fp32", "tf32", "bf16,", "fp8_e4m3"]
    assert max(marks) < min(names)


@pytest.mark.parametrize(("intensities", "anchor"), [((2000.0,), "start"), ((400.0,), "end"), ((400.0, 2000.0), "end")])
def test_the_name_of_a_level_stands_where_no_mark_is_in_its_way(intensities, anchor):
    flops = 1.05 * GPUS["h100"].peaks[Format.TF32] * 1e12 * 0.5e-3
    sites = [
        dataclasses.replace(block(0)[1], id=f"fc{number}", intensity=intensity, flops=flops)
        for number, intensity in enumerate(intensities)
    ]
    page = read(sample(sites=tuple(sites)))
    (name,) = (e for e in page.elements if "above" in e.classes and e.text.startswith("tf32"))
    assert name.attributes["text-anchor"] == anchor
