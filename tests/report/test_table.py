"""The terminal tables of analyze."""

from __future__ import annotations

from typing import Any

from amptune.report.table import SiteRow, render_estimates, render_sites, row_names


def entry(step: float, speedup: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"step_ms": step, "speedup": speedup, "memory_bytes": 3 * 2**30, "bound": "gpu", "fits": True, **more}


def test_fixed_is_shown_only_where_it_differs() -> None:
    table = {"h100": {"fp32": entry(10.0), "fp32+fixed": entry(10.0), "autocast-bf16": entry(4.0, 2.5),
                      "autocast-bf16+fixed": entry(2.0, 5.0)}}  # fmt: skip
    text = render_estimates(table, "eager")
    assert "fp32+fixed" not in text
    assert "autocast-bf16+fixed" in text
    assert "2.00  5.00x" in text
    assert "3.0 GiB" in text
    assert "padded" in text


def test_recipes_stand_in_the_order_of_the_table_whatever_the_first_gpu_runs() -> None:
    table = {"v100": {"fp32": entry(9.0), "autocast-fp16": entry(3.0)},
             "h100": {"fp32": entry(3.0), "autocast-fp16": entry(1.0), "tf32": entry(2.0)}}  # fmt: skip
    lines = [line.split()[0] for line in render_estimates(table, "eager").splitlines()]
    assert lines[1:5] == ["recipe", "fp32", "tf32", "autocast-fp16"]


def test_many_gpus_become_rows() -> None:
    table = {f"gpu{number}": {"fp32": entry(1.0)} for number in range(6)}
    lines = render_estimates(table, "eager").splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["recipe", *table, "memory"]


def test_marks_are_explained_only_where_they_stand() -> None:
    plain = render_estimates({"h100": {"fp32": entry(1.0)}}, "eager")
    marked = render_estimates({"h100": {"fp32": entry(1.0, fits=False, bound="launch")}}, "eager")
    assert "launches" not in plain
    assert "1.00x!*" in marked
    assert "needs more than the GPU's memory" in marked
    assert "bound by launches" in marked


def test_what_launches_are_taken_to_cost_stands_where_they_bind() -> None:
    bound = {"fp32": entry(9.0), "tf32": entry(9.0, bound="launch", gpu_ms=4.0),
             "autocast-bf16": entry(9.0, bound="launch", gpu_ms=2.5)}  # fmt: skip
    words = {"h100": "28 us each (assumed)", "t4": "30 us each (measured here)"}
    text = render_estimates({"h100": bound, "t4": {"fp32": entry(9.0)}}, "eager", words)
    assert "h100: 28 us each (assumed); without waiting for them these take 2.50 to 4.00 ms" in text
    assert "t4: 30" not in text


def test_a_model_that_is_in_16_bits_itself_is_named_so() -> None:
    own = {"own_formats": {"bfloat16": 0.98}}
    table = {"h100": {"fp32": entry(2.0, **own), "fp32+fixed": entry(1.0, **own), "tf32": entry(2.0, **own),
                      "autocast-bf16": entry(2.0)}}  # fmt: skip
    names = row_names(table)
    assert names == {"fp32": "own bf16", "fp32+fixed": "own bf16+fixed", "tf32": "own bf16+tf32"}
    text = render_estimates(table, "eager")
    assert "speedup over own bf16" in text
    assert "own bf16 (recipe fp32): the model's own parameters, casts or autocast regions run 98% of its FLOPs" in text
    rows = [SiteRow("fc", "linear", "8x8x8", 1, {"fp32": 1.0})]
    assert "own bf16 ms" in render_sites(rows, ["fp32"], "h100", named=names)


def test_a_region_of_a_model_in_fp32_is_said() -> None:
    table = {"h100": {"fp32": entry(2.0, own_formats={"float16": 0.2})}}
    assert not row_names(table)
    assert "  fp32: the model's own parameters, casts or autocast regions run 20% of its FLOPs in fp16" in (
        render_estimates(table, "eager")
    )


def test_recipes_within_the_known_error_are_too_close_to_call() -> None:
    table = {"h100": {"fp32": entry(9.0), "tf32": entry(4.5), "autocast-bf16": entry(2.0), "fp8-rowwise": entry(2.3),
                      "autocast-bf16+fixed": entry(1.0), "autocast-fp16": entry(2.1)}}  # fmt: skip
    text = render_estimates(table, "eager")
    assert "too close to call on h100: autocast-bf16, autocast-fp16\n" in text
    assert "off by 7% or less" in text
    apart = {name: each for name, each in table["h100"].items() if name != "autocast-fp16"}
    text = render_estimates({"h100": apart, "t4": table["h100"]}, "eager")
    assert "fastest on h100: autocast-bf16\n" in text
    assert "too close to call on t4: autocast-bf16, autocast-fp16\n" in text


def test_steps_that_wait_for_the_processor_are_close_for_longer() -> None:
    table = {"h100": {"fp32": entry(12.0), "tf32": entry(10.0, bound="launch", gpu_ms=5.0),
                      "autocast-bf16": entry(11.0, bound="launch", gpu_ms=4.0)}}  # fmt: skip
    assert "too close to call on h100: tf32, autocast-bf16, fp32\n" in render_estimates(table, "eager")
    by_gpu = {"h100": {name: each | {"bound": "gpu"} for name, each in table["h100"].items()}}
    assert "fastest on h100: tf32\n" in render_estimates(by_gpu, "eager")


def test_what_does_not_fit_or_run_is_not_the_fastest() -> None:
    none = {
        "step_ms": None,
        "speedup": None,
        "memory_bytes": None,
        "bound": None,
        "fits": None,
        "reason": "G403 at m.py:7: no",
    }
    table = {"h100": {"fp32": entry(9.0), "tf32": entry(3.0, fits=False), "autocast-bf16": none}}
    assert "fastest on h100: fp32\n" in render_estimates(table, "eager")


def test_nothing_to_say() -> None:
    assert render_estimates({}, "eager") == ""
    assert render_estimates({"cpu": {}}, "eager") == ""
    assert render_sites([], ["fp32"], "h100") == ""


def test_sites_are_cut_and_the_rest_is_counted() -> None:
    rows = [SiteRow(f"blocks.{n}.a_very_long_name_of_a_module_in_a_deep_model", "linear", "8x8x8", 1, {"fp32": 1.0})
            for n in range(5)]  # fmt: skip
    text = render_sites(rows, ["fp32", "tf32"], "h100", limit=3)
    assert "... and 2 more" in text
    assert text.count("1.000") == 3
    assert max(map(len, text.splitlines())) < 110
