"""report.html of a tune: one page that works offline and says what was found, on what, and how sure it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from amptune.core.plan import Plan
from amptune.core.scaler import GradientRecord
from amptune.core.sizes import size_text
from amptune.core.tables import CostTable
from amptune.report.page import Markup, folded, join, number_cell, page, section, table, tag
from amptune.report.svg import symbols
from amptune.report.tune_charts import bars, history, memory, predicted, trade_off, trial_legend
from amptune.report.tune_data import MAYBE_FASTER, Run, TuneData, ms, number, percent
from amptune.report.tune_scaler import scaler_report
from amptune.report.tune_sites import SiteRow, badge, format_counts, site_rows, site_table, site_tree

if TYPE_CHECKING:  # networkx is not needed to write a report
    from amptune.core.graph import PrecisionGraph

QUALITY_DATA = {
    "single-batch": "one batch, used again and again (the target has no train_batches)",
    "train_batches": "the batches of train_batches()",
}


def tune_report(
    data: dict[str, Any],
    plan: Plan,
    graph: PrecisionGraph | None = None,
    *,
    scaler: Mapping[str, Any] | None = None,
    record: GradientRecord | None = None,
    costs: CostTable | None = None,
) -> str:
    """The page as text.

    Args:
        data: content of result.json.
        plan: what was emitted.
        graph: the model's sites, for op, source line and order of the sites.
        scaler: content of scaler.json, for the simulation.
        record: the recorded gradients, for their histogram.
        costs: measured times of each site, for the time that each one saves.
    """
    found = TuneData.read(data)
    rows = site_rows(plan, graph, costs)
    return page(
        f"amptune: {plan.target or 'model'}: {_headline(found)}",
        symbols(),
        _verdict(found, plan),
        section("Against the stock recipes", "stock", bars(found)),
        _trials(found),
        section("Formats of the sites", "sites", _sites(plan, rows, data.get("rounded_loss"))),
        section("Loss scaling", "scaler", scaler_report(plan, scaler, record)),
        section("Runs that failed or were not valid", "problems", _problems(found)),
        section("How it was measured", "setup", _setup(found, plan)),
        tag("footer", f"Written by {data.get('tool', 'amptune')}. All numbers are in result.json beside this page."),
    )


def _headline(data: TuneData) -> str:
    if data.verdict == "plan":
        return f"a plan is {data.speedup:.2f} times as fast as the best stock recipe"
    if data.verdict == "stock" and data.best:
        if not _plans_of(data):
            measured = sum(run.step is not None for run in data.stock)
            place = "the only recipe measured" if measured == 1 else f"the fastest valid one of {measured} recipes"
            return f"no plan was tried; {data.best.name} is {place}"
        if (data.missed or 0.0) >= MAYBE_FASTER:
            return f"no plan proved faster than the stock recipe {data.best.name}"
        if data.best.name == "fp32":
            return "nothing gained, FP32 is the fastest valid choice"
        return f"no plan beats the stock recipe {data.best.name}"
    return "no valid plan was found"


def _verdict(data: TuneData, plan: Plan) -> Markup:
    headline = _headline(data)
    return tag(
        "header",
        tag("p", "amptune tune", tag("code", plan.target) if plan.target else "", class_="eyebrow"),
        tag("h1", f"{headline[0].upper()}{headline[1:]}"),
        *(tag("p", words, class_="lede") for words in _explanation(data)),
        tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in _figures(data)), class_="figures"),
    )


def _explanation(data: TuneData) -> Iterator[str]:
    best, stock = data.best, data.best_stock
    if best is None or data.verdict == "invalid":
        yield "Nothing was measured that trains as well as FP32; the table of failed runs below says why."
        return
    if data.verdict == "plan" and stock is not None:
        low = "" if data.speedup_low is None else f" (at least {data.speedup_low:.2f} times with 95% confidence)"
        yield (
            f"A training step takes {ms(best.median)} instead of {ms(stock.median)} with {stock.name}, the fastest "
            f"valid stock recipe: {data.speedup:.2f} times as fast{low}, measured in turns after the search."
        )
        yield from _attribution(data)
    else:
        plans = _plans_of(data)
        valid = sum(run.valid for run in plans)
        tried = f"{_plans(len(plans))} tried, {valid} of them valid, and none proved faster beyond the noise"
        yield (
            f"{best.name} takes {ms(best.median)} a training step; {tried if plans else 'no plan was tried'}. "
            "The recipe itself is what was written."
        )
        yield from _parts(data)
        if data.missed is not None:
            yield from _missed(data)
        elif data.repeated and any(run.valid and run.ranked < best.median for run in plans):
            yield "The fastest of them were measured again, in turns with it, and their lead did not hold up."
    if data.raw.get("quality_data") == "single-batch":
        yield "Quality was judged on a single batch: add train_batches() to the target to judge it on real data."


def _attribution(data: TuneData) -> Iterator[str]:
    in_parts = data.raw.get("compiled") == "parts"
    if data.formats_only is not None and not (in_parts and data.best and data.best.name != "plan"):
        is_recipe_eager = (data.raw.get("repeats") or {}).get("stock_in_eager")
        how = ", the model compiled whole" if is_recipe_eager else ", compiled as the recipe is"
        compiled, also = (how, " and from how it is compiled") if in_parts else ("", "")
        alone = f"With the formats alone (loss in FP32, no padding, memory format as written{compiled}) it is"
        if f"{data.formats_only:.2f}" == f"{data.speedup:.2f}":
            yield f"{alone} as fast: the gain is theirs."
        else:
            yield f"{alone} {data.formats_only:.2f} times as fast; the rest comes from those choices{also}."
    yield from _parts(data)


def _missed(data: TuneData) -> Iterator[str]:
    """What the repeats say of the best plan, which did not win."""
    missed = data.raw["missed"]
    low = number(missed.get("speedup_low"))
    least = "" if low is None else f", at least {low:.2f} times with 95% confidence"
    best = f"The best of them, trial {missed.get('trial')}, was measured again in turns with it"
    yield f"{best}: {data.missed:.2f} times as fast{least}."
    if (data.missed or 0.0) >= MAYBE_FASTER:
        option = missed.get("more_rounds_by")
        how = f"a larger {option} leaves time for more rounds" if option else "an idle machine makes rounds steadier"
        yield f"It may be faster all the same: {how}."


def _parts(data: TuneData) -> Iterator[str]:
    """That what was written compiles parts of the model, and what that gives by itself, or is for eager mode."""
    if data.raw.get("trials_in_eager"):
        yield "Trials ran in eager mode, since compiling takes far longer than a trial."
    if data.raw.get("compiled") == "eager" and data.raw.get("repeated"):
        yield "What was written is for eager mode: leave torch.compile out."
        recipe = "in eager mode too" if data.raw["repeats"].get("stock_in_eager") else "compiled"
        yield f"The best stock recipe was measured {recipe}."
    if data.raw.get("compiled") != "parts":
        return
    yield "What was written compiles blocks of the model, each by itself, and not the model as a whole."
    if data.stock_in_parts is not None:
        yield f"Compiled so, the best stock recipe is {data.stock_in_parts:.2f} times as fast as compiled whole."


def _plans_of(data: TuneData) -> list[Run]:
    return [run for run in data.trials if run.kind != "stock"]


def _plans(count: int) -> str:
    return "1 plan was" if count == 1 else f"{count} plans were"


def _figures(data: TuneData) -> Iterator[tuple[str, str]]:
    best = data.best
    if best is None:
        return
    yield "Step time", ms(best.median if best.step else None)
    if data.verdict == "plan":
        name = data.best_stock.name if data.best_stock else "best stock"
        yield f"Against {name}", f"{data.speedup:.2f}×"
    fp32 = next((run for run in data.stock if run.name == "fp32" and run.step), None)
    if fp32 and best.step and best.median and "fp32" not in (best.name, data.best_stock and data.best_stock.name):
        yield "Against fp32", f"{fp32.median / best.median:.2f}×"
    yield "Loss gap to FP32", percent(best.gap)
    if best.memory is not None:
        yield "Peak memory", size_text(best.memory)
    if best.evaluation is not None:
        yield "evaluate(model)", f"{best.evaluation:.5g}"


def _trials(data: TuneData) -> Markup:
    charts = {
        "Step time against loss gap": trade_off(data),
        "Step time against memory": memory(data),
        "Trial history": history(data),
        "Predicted against measured": predicted(data),
    }
    shown = [tag("div", tag("h3", title), chart, class_="panel") for title, chart in charts.items() if chart]
    if not data.trials:
        return section("Trials", "trials", tag("p", "No trial was recorded."))
    everything = folded("All trials as a table", _trial_table(data))
    legend = trial_legend(data.trials, data.winner)
    return section("Trials", "trials", legend, tag("div", *shown, class_="panels"), everything)


def _trial_table(data: TuneData) -> Markup:
    with_memory = any(run.memory is not None for run in data.trials)
    head = ["Trial", "Kind", "Step time", "Predicted", "Loss gap", *(["Memory"] if with_memory else []), "State"]
    return table("All trials", head, (_trial_row(run, with_memory) for run in data.trials), class_="sortable")


def _trial_row(run: Run, with_memory: bool) -> list[str]:
    return [
        number_cell("–" if run.number is None else str(run.number), run.number),
        run.name if run.kind == "stock" else run.kind,
        number_cell(ms(run.median), run.median),
        number_cell(ms(run.predicted), run.predicted),
        number_cell(percent(run.gap), run.gap),
        *([number_cell(size_text(run.memory), run.memory)] if with_memory else []),
        run.state if run.valid or not run.reason else f"{run.state}: {run.reason}",
    ]


def _problems(data: TuneData) -> Markup:
    """Failed and invalid runs, those with one reason together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for run in data.trials or data.stock:
        if not run.valid:
            name = run.name if run.kind == "stock" else f"{run.number}"
            groups.setdefault((run.state, run.reason or "no reason was recorded"), []).append(name)
    if not groups:
        return tag("p", "None: every run was measured and trains as well as FP32.")
    rows = [[", ".join(names), state, reason] for (state, reason), names in groups.items()]
    caption = "Trials by number, stock recipes by name"
    return table(caption, ["Runs", "State", "Why"], rows, class_="plain")


def _sites(plan: Plan, rows: Sequence[SiteRow], rounded_loss: str | None) -> Markup:
    whole = tag("ul", *(tag("li", words) for words in _whole_model(plan, rounded_loss)), class_="facts")
    if not rows:
        return join([tag("p", "The plan changes no site: the model runs as it is written."), whole])
    if len(rows) == 1 and not rows[0].id:
        region = tag("p", badge(str(rows[0].decision.format)), f" in one autocast region: {rows[0].decision.why}")
        return join([region, whole])
    tree = folded("The model as a tree", site_tree(rows), open_=True)
    return join([format_counts(rows), whole, tree, site_table(rows)])


def _whole_model(plan: Plan, rounded_loss: str | None) -> Iterator[str]:
    """The choices of the plan that are not a site's. A loss of the model's own may come out rounded all the same."""
    yield f"TF32 for what stays in FP32: {'on' if plan.tf32 else 'off'}"
    yield f"memory format of convolutions: {'channels_last' if plan.channels_last else 'as written'}"
    loss = str(plan.loss_format) if plan.loss_format else "the format of the output"
    how = f"comes out in {rounded_loss}" if rounded_loss else f"computed in {loss}"
    yield f"loss {how}{', compiled' if plan.loss_compile else ''}"
    if plan.compile_parts:
        yield f"{len(plan.compile_parts)} parts of the model under torch.compile, each by itself"
    if plan.output_format:
        yield f"outputs cast to {plan.output_format}"
    padded = sum(1 for site in plan.sites.values() if site.pad)
    if padded:
        yield f"{padded} {'site' if padded == 1 else 'sites'} padded at compute time"


def _setup(data: TuneData, plan: Plan) -> Markup:
    facts = [tag("div", tag("dt", name), tag("dd", value)) for name, value in _facts(data, plan) if value]
    notes = [tag("li", str(note)) for note in data.raw.get("notes") or ()]
    return join([tag("dl", *facts, class_="facts"), *([tag("h3", "Notes"), tag("ul", *notes)] if notes else [])])


def _facts(data: TuneData, plan: Plan) -> Iterator[tuple[str, str]]:
    raw = data.raw
    device = raw.get("device") or {}
    quality = str(raw.get("quality_data", ""))
    yield "Device", _device(device)
    yield "Driver, CUDA", ", ".join(str(device[key]) for key in ("driver", "cuda") if device.get(key))
    yield "Versions", ", ".join(f"{name} {version}" for name, version in (raw.get("versions") or {}).items())
    yield "Mode", str(raw.get("mode", ""))
    yield "Seed", str(raw.get("seed", ""))
    yield "Trials", f"{len(data.trials)} in {_duration(raw.get('seconds'))}"
    yield "Quality", f"{raw.get('steps', '?')} training steps on {QUALITY_DATA.get(quality, quality or 'unknown data')}"
    yield "Noise of FP32", f"{percent(data.noise, signed=False)} loss gap between two FP32 runs"
    yield "Tolerance", f"{percent(data.tolerance, signed=False)} loss gap, and a gate on each parameter's gradient"
    yield "Model", plan.target
    yield "Fingerprint", plan.fingerprint


def _device(device: Mapping[str, Any]) -> str:
    parts = [str(device.get("gpu") or device.get("type") or "unknown")]
    if device.get("capability"):
        parts.append(f"capability {device['capability']}")
    if device.get("memory_bytes"):
        parts.append(size_text(device["memory_bytes"]))
    if device.get("threads"):
        parts.append(f"{device['threads']} thread{'' if device['threads'] == 1 else 's'}")
    return ", ".join(parts)


def _duration(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
