"""What analyze hands to its page: times, risks in each format and values of each site."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import fx

from amptune.analyze.pagedata import page_data
from amptune.analyze.runner import Question, analyze_graph
from amptune.capture import Capture
from amptune.core.evidence import Evidence
from amptune.core.graph import PrecisionGraph
from amptune.core.hardware import GPUS
from amptune.core.observed import Observed, Stat
from amptune.report.analyze_data import PageData, PageSite, Risk, Spread
from tests.analyze.graphs import graph_of, linear, op


def data_of(graph: PrecisionGraph, *gpus: str, evidence: Evidence | None = None) -> PageData:
    chosen = tuple(GPUS[name] for name in gpus or ("h100",))
    question = Question(chosen, torch_version=torch.__version__, evidence=evidence or Evidence())
    module = fx.GraphModule(torch.nn.Module(), fx.Graph())
    capture = Capture(module, graph, "export", 0.1, True, ("a note",))
    return page_data(dataclasses.replace(analyze_graph(graph, question), capture=capture), question)


@pytest.fixture
def sites() -> dict[str, PageSite]:
    graph = graph_of(
        linear("fc", "<input>", 4096, 1024, 1024),
        op("#tanh.0", "tanh", "fc", shape=(4096, 1024)),
        op("#mul.0", "mul", "#tanh.0", shape=(4096, 1024), scalars={1: 1e6}),
        op("#relu.0", "relu", "fc", shape=(4096, 1024)),
        linear("odd", "#relu.0", 4096, 1024, 1001),
    )
    return {site.id: site for site in data_of(graph).sites}


def test_times_are_those_of_the_first_timed_gpu(sites: dict[str, PageSite]) -> None:
    fp32, tf32, half = (sites["fc"].ms(name) for name in ("fp32", "tf32", "autocast-bf16"))
    assert fp32 > 2 * max(tf32, half) > 0  # so small a layer loses to casts what BF16 gains over TF32
    assert sites["odd"].ms("autocast-bf16+fixed") < sites["odd"].ms("autocast-bf16")


def test_flops_count_the_products_of_the_backward(sites: dict[str, PageSite]) -> None:
    assert sites["fc"].flops == 3 * 2 * 4096 * 1024 * 1024


def test_a_site_is_fine_where_it_runs_and_kept_where_it_does_not(sites: dict[str, PageSite]) -> None:
    risks = {name: risk for name, (risk, _) in sites["fc"].risks.items()}
    assert risks == {"bf16": Risk.FINE, "fp16": Risk.FINE, "fp8_e4m3": Risk.FINE}
    assert sites["odd"].risks["fp8_e4m3"][0] is Risk.KEPT, "1001 is no multiple of 16"
    assert sites["#tanh.0"].risks["fp8_e4m3"][0] is Risk.KEPT


def test_bounds_come_from_the_ranges(sites: dict[str, PageSite]) -> None:
    spread = sites["#tanh.0"].spread
    assert spread is not None
    assert (spread.low, spread.high, spread.how) == (0.0, 1.0, "bound")
    assert sites["fc"].spread is None


def test_what_a_recorded_step_showed_comes_before_the_bound() -> None:
    graph = graph_of(op("#tanh.0", "tanh", "<input>"))
    seen = Observed({"#tanh.0": Stat(-0.75, 0.5, 8, exponents={-3: 4, -1: 4})}, {}, "cpu", 1.0)
    (site,) = data_of(graph, evidence=Evidence(observed=seen)).sites
    assert site.spread == Spread(0.125, 0.75, "observed")


def test_the_cpu_alone_has_a_page_without_times() -> None:
    data = data_of(graph_of(linear("fc", "<input>", 64, 64, 64)), "cpu")
    assert data.gpu is None
    assert data.sites[0].milliseconds == {}
