"""The charts of the tune report: bars, trade-offs, history, and how good the predictions were."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from amptune.core.sizes import size_text
from amptune.report.page import Markup, join, tag
from amptune.report.svg import Axis, Plot, Point, figure, key, legend
from amptune.report.tune_data import Run, Spread, TuneData, fastest, ms, pareto, percent

SHAPES = {"stock": "square", "front": "diamond", "search": "circle"}
"""Mark of each kind of trial; any other kind is a triangle."""
ROW = 46
ROW_WITHOUT_BAR = 24
GAP_WINDOW = 4
"""A loss gap beyond this many times the allowed one is drawn at the edge, so that the valid ones stay apart."""
TIME_WINDOW = 1.15
"""A step time beyond this many times the best stock recipe's may be drawn at the edge, for the same reason."""


def bars(data: TuneData) -> Markup:
    """Step time of the stock recipes and of what was emitted, with quartiles."""
    runs = [run for run in data.stock if not (data.best_stock and run.name == data.best_stock.name)]
    runs += [run for run in (data.best_stock, data.best if data.verdict == "plan" else None) if run]
    measured = sorted((run for run in runs if run.step), key=lambda run: -run.median)
    missing = [run for run in runs if not run.step]
    if not measured:
        return Markup()
    top = max(run.step.high for run in measured if run.step)
    rows = [piece for row, run in enumerate(measured) for piece in _bar(run, row * ROW, top, data)]
    height = len(measured) * ROW
    for run in missing:
        rows += _bar(run, height, top, data)
        height += ROW_WITHOUT_BAR
    words = "; ".join(f"{run.name} {ms(run.median)}{'' if run.valid else ', not valid'}" for run in measured)
    chart = figure("Step time of the stock recipes and the result", words, height, rows, class_="chart bars")
    note = "Median of the training step; the whisker spans the quartiles."
    if data.repeated:
        again = "The best stock recipe and the plan were" if data.verdict == "plan" else "The best stock recipe was"
        note += f" {again} measured again at the end, in turns; the others in their own trials."
    return join([chart, tag("p", note, class_="note")])


def trade_off(data: TuneData) -> Markup:
    """Step time against loss gap over all measured trials, with the Pareto front of the valid ones."""
    runs = [run for run in data.trials if run.step and run.gap is not None]
    if not runs:
        return Markup()
    gaps = [run.gap for run in runs if run.gap is not None]
    limit = GAP_WINDOW * data.threshold or max(map(abs, gaps))
    shown = [gap for gap in gaps if abs(gap) <= limit]
    y = Axis.over([*shown, 0.0, 1.3 * data.threshold, -0.3 * data.threshold], "loss gap to FP32", "share")
    plot = Plot(_time_axis(runs, data), y)
    front = pareto((run.ranked, run.gap) for run in runs if run.valid and run.gap is not None)
    content = [plot.band(-data.noise, data.noise, "noise")] if data.noise else []
    content += plot.level(data.threshold, f"allowed {percent(data.threshold, signed=False)}", "limit")
    content += plot.steps(front, "front")
    content += _marks(plot, runs, lambda run: run.gap, data)
    beyond = sum(bool(y.beyond(run.gap or 0.0, "d", "u") or plot.x.beyond(run.ranked, "l", "r")) for run in runs)
    notes = ["Down and to the left is better; the dashed line is the Pareto front of the valid trials."]
    notes += ["The grey band is the noise of FP32 against itself."] if data.noise else []
    notes += [f"{_count(beyond, 'trial lies', 'trials lie')} beyond the edge (arrow)."] if beyond else []
    words = f"{len(runs)} trials, {sum(run.valid for run in runs)} valid, {len(front)} on the Pareto front"
    chart = plot.chart("Step time against loss gap", words, content)
    return join([chart, tag("p", " ".join(notes), class_="note")])


def memory(data: TuneData) -> Markup:
    """Step time against peak memory; empty where memory is not known."""
    runs = [run for run in data.trials if run.step and run.memory is not None]
    if not runs:
        return Markup()
    peaks = [run.memory for run in runs if run.memory is not None]
    unit, factor = ("GiB", 2**30) if max(peaks) >= 2**30 else ("MiB", 2**20)
    y = Axis.over((peak / factor for peak in peaks), f"peak memory, {unit}")
    plot = Plot(_time_axis(runs, data), y)
    front = pareto((run.ranked, run.memory / factor) for run in runs if run.valid and run.memory is not None)
    marks = _marks(plot, runs, lambda run: None if run.memory is None else run.memory / factor, data)
    words = f"{len(runs)} trials, from {size_text(min(peaks))} to {size_text(max(peaks))}"
    chart = plot.chart("Step time against peak memory", words, [*plot.steps(front, "front"), *marks])
    note = "Down and to the left is better; the dashed line is the Pareto front of the valid trials."
    return join([chart, tag("p", note, class_="note")])


def history(data: TuneData) -> Markup:
    """Step time of each trial in order, with the best valid one so far."""
    runs = [run for run in data.trials if run.number is not None]
    measured = [run for run in runs if run.step]
    if not measured:
        return Markup()
    best = _best_so_far(runs)
    numbers = [float(run.number) for run in runs if run.number is not None]
    x = Axis.over([0.0, 1.0, *numbers], "trial", "count")
    plot = Plot(x, _time_axis(measured, data))
    content = [*plot.steps(best, "best")]
    content += [
        plot.mark(Point(float(run.number or 0), plot.y.low, "cross", "lost", f"{run.title}, {run.state}: {run.reason}"))
        for run in runs
        if not run.step
    ]
    content += _marks(plot, measured, lambda run: run.ranked, data, across=lambda run: float(run.number or 0))
    words = f"{len(runs)} trials; the best valid one took {ms(best[-1][1])}" if best else f"{len(runs)} trials"
    note = "The line is the best valid trial so far; an arrow says that a trial lies beyond the edge."
    chart = plot.chart("Trial history", words, content)
    return join([chart, tag("p", note, class_="note")])


def predicted(data: TuneData) -> Markup:
    """Step time that the cost model foretold against the one that was measured; empty without predictions."""
    runs = [run for run in data.trials if run.step and run.compared > 0 and run.predicted is not None]
    if not runs:
        return Markup()
    both = [value for run in runs for value in (run.compared, run.predicted or 0.0)]
    x, y = Axis.over(both, "predicted, ms"), Axis.over(both, "measured, ms")
    plot = Plot(x, y)
    content = plot.line([(x.low, x.low), (x.high, x.high)], "diagonal")
    content += _marks(plot, runs, lambda run: run.compared, data, across=lambda run: run.predicted or 0.0)
    error = statistics.median(abs((run.predicted or 0.0) - run.compared) / run.compared for run in runs)
    words = f"median error {error:.1%} over {_count(len(runs), 'plan', 'plans')}"
    note = f"{words[0].upper()}{words[1:]}. On the line the prediction was right; above it the step took longer."
    chart = plot.chart("Predicted against measured step time", words, content)
    return join([chart, tag("p", note, class_="note")])


def trial_legend(runs: Iterable[Run], winner: int | None) -> Markup:
    """Shapes and colours of the trials that are there."""
    shown = list(runs)
    kinds = dict.fromkeys(run.kind for run in shown)
    entries = [key(_shape(kind), f"valid kind-{_shape(kind)}", _KINDS.get(kind, kind)) for kind in kinds]
    if any(not run.valid and run.step for run in shown):
        entries.append(key("circle", "invalid", "hollow: not valid"))
    if any(not run.step for run in shown):
        entries.append(key("cross", "lost", "no step time"))
    if winner is not None and any(run.number == winner for run in shown):
        entries.append(key("ring", "ring", "what was written"))
    return legend(*entries)


_KINDS = {"stock": "stock recipe", "front": "from the cost model", "search": "from the search", "repeat": "repeat"}


def _bar(run: Run, y: float, top: float, data: TuneData) -> list[Markup]:
    """One row at ``y``: name and time on a line, the bar under it."""
    won = data.best is not None and run.name == data.best.name
    name = f"{run.name}{' (written)' if won else ''}"
    title = tag("text", name, x="0", y=y + 15, class_="strong" if won else None)
    if run.step is None:
        return [title, tag("text", f"{run.state}: no step time", x="100%", y=y + 15, text_anchor="end")]
    note = "" if run.valid else "not valid, "
    value = tag("text", f"{note}{ms(run.median)}", x="100%", y=y + 15, text_anchor="end")
    classes = "bar invalid" if not run.valid else "bar won" if won else "bar"
    bar = tag("rect", x="0", width=_across(run.median, top), y=y + 21, height=14, rx=2, class_=classes)
    return [title, value, tag("g", tag("title", _spread_words(run, run.step)), bar, *_whisker(run.step, y + 28, top))]


def _whisker(step: Spread, y: float, top: float) -> list[Markup]:
    """From quartile to quartile, on a halo that parts it from the bar."""
    low, high = _across(step.low, top), _across(step.high, top)
    parts = []
    for classes in ("halo", "whisker"):
        parts.append(tag("line", x1=low, x2=high, y1=y, y2=y, class_=classes))
        parts += [tag("line", x1=x, x2=x, y1=y - 4, y2=y + 4, class_=classes) for x in (low, high)]
    return parts


def _across(value: float, top: float) -> str:
    return f"{100 * value / top if top else 0:.2f}%"


def _spread_words(run: Run, step: Spread) -> str:
    return f"{run.name}: {ms(step.median)}, quartiles {ms(step.low)} to {ms(step.high)}, {step.repeats} steps"


def _marks(
    plot: Plot,
    runs: Sequence[Run],
    height: Callable[[Run], float | None],
    data: TuneData,
    *,
    across: Callable[[Run], float] = lambda run: run.ranked,
) -> list[Markup]:
    """Marks of measured trials, the valid ones on top and the winner last."""
    ordered = sorted(runs, key=lambda run: (run.number == data.winner, run.valid))
    points = [
        Point(across(run), y, _shape(run.kind), f"valid kind-{_shape(run.kind)}" if run.valid else "invalid",
              _words(run), run.number is not None and run.number == data.winner)
        for run in ordered
        if (y := height(run)) is not None
    ]  # fmt: skip
    return [plot.mark(point) for point in points]


def _shape(kind: str) -> str:
    return SHAPES.get(kind, "triangle")


def _words(run: Run) -> str:
    by = "the trial it was timed beside" if run.paired is not None else "what was timed beside it"
    beside = f" ({ms(run.ranked)} by {by})" if run.ranked != run.median else ""
    parts = [f"{ms(run.median)}{beside}", f"loss gap {percent(run.gap)}"]
    parts += [f"predicted {ms(run.predicted)}"] if run.predicted is not None else []
    parts += [size_text(run.memory)] if run.memory is not None else []
    parts += [] if run.valid else [f"not valid: {run.reason}"]
    return f"{run.title}: {', '.join(parts)}"


def _time_axis(runs: Sequence[Run], data: TuneData) -> Axis:
    """Step times; a few that are far slower than the others do not press those together."""
    times = sorted(run.ranked for run in runs)
    limit = max(TIME_WINDOW * (data.best_stock.median if data.best_stock else 0.0), times[len(times) * 3 // 4])
    shown = [time for time in times if time <= limit] if times[-1] > 1.5 * limit else times
    return Axis.over(shown, "step time, ms")


def _best_so_far(runs: Sequence[Run]) -> list[tuple[float, float]]:
    """(trial, step time) wherever the best valid trial changed, and at the last trial."""
    best: list[tuple[float, float]] = []
    for count in range(1, len(runs) + 1):
        leader, here = fastest(runs[:count]), float(runs[count - 1].number or 0)
        if leader and (not best or leader.ranked < best[-1][1] or count == len(runs)):
            best.append((here, leader.ranked))
    return best


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
