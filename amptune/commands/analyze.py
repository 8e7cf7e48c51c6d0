"""``amptune analyze``: parses the arguments, captures the model, judges it, prints the report."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from amptune.commands.guard import Finished, guarded
from amptune.commands.streams import show_any_name, takes_color
from amptune.commands.targets import add_state_and_batch, add_target, source_lines
from amptune.commands.values import codes, seconds
from amptune.config import FAIL_ON, Config, load_config, model_of
from amptune.core.files import check_file, write_atomic
from amptune.core.finding import Severity
from amptune.core.recipes import RECIPES, STOCK, recipe_named
from amptune.core.registry import LoadedRule, load_rules, select_rules
from amptune.core.rule import GraphRule
from amptune.errors import WorkError

if TYPE_CHECKING:
    from amptune.analyze.runner import Analysis, Question
    from amptune.capture import Capture, Target
    from amptune.core.evidence import Evidence

FORMATS = ("text", "json", "sarif", "github")
DEFAULT_TIMEOUT = 600.0
_MANY_CALLS = 20_000
"""Nodes of a forward from which judging them takes some seconds, so that it is said."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``analyze``."""
    add_target(parser)
    add_state_and_batch(parser)
    asked = parser.add_argument_group("what to report on")
    asked.add_argument("--gpu", action="append", default=[], metavar="NAME",
                       help="h100, a100, v100, ..., cpu or all; may be repeated (default: the one here)")  # fmt: skip
    asked.add_argument("--no-calibrate-gpu", action="store_true",
                       help="predict for the GPU here by its generation's table, not by measuring it")  # fmt: skip
    asked.add_argument("--recipe", action="append", default=[], metavar="NAME",
                       help=f"{', '.join(RECIPES)}; may be repeated (default: stock)")  # fmt: skip
    asked.add_argument("--compile", action="store_true", help="the model runs under torch.compile")
    asked.add_argument("--no-loss", action="store_true", help="the forward alone: no loss, backward or optimizer")
    values = parser.add_argument_group("value ranges")
    values.add_argument("--range", action="append", default=[], metavar="NAME=LOW:HIGH",
                        help="bounds of an input, such as x=0:255; may be repeated (default: the batch's)")  # fmt: skip
    values.add_argument("--calibrate", action="store_true",
                        help="run one step in FP32 on the batch, and judge the values that it shows")  # fmt: skip
    rules = parser.add_argument_group("rules")
    for flag, text in (("--select", "rules to run, as G101 or G1,G2"), ("--ignore", "rules to leave out")):
        rules.add_argument(flag, action="append", default=[], metavar="CODES", help=text)
    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=FORMATS, default="text", help="form of the report (default: text)")
    output.add_argument("--html", type=Path, metavar="FILE", help="write the report as one page that works offline")
    output.add_argument("--fail-on", choices=FAIL_ON, help="lowest severity that exits 1 (default: error)")
    output.add_argument("--timeout", type=seconds, default=DEFAULT_TIMEOUT, metavar="SECONDS",
                        help=f"give up after this time (default {DEFAULT_TIMEOUT:.0f})")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Analyze and report; the exit code is 0, or 1 for findings at or above ``--fail-on``."""
    show_any_name()
    config = load_config()
    if args.html:
        check_file(args.html)
    with _rare_collections():
        return guarded(args.timeout, lambda finished: _work(args, config, finished), fork=args.own_process)


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Python looks for garbage less often: imports and a capture make a million objects that stay."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _work(args: argparse.Namespace, config: Config, finished: Finished) -> int:
    _say("importing torch")
    from amptune.analyze.assumed.assume import parse_range
    from amptune.analyze.runner import analyze

    question = _question(args, config)
    for stated in args.range:
        parse_range(stated)  # one that does not read is said before the model is captured
    target, captured = _capture(args, config)
    evidence, failed = _evidence(args, target, captured)
    question = dataclasses.replace(question, evidence=evidence)
    analysis = analyze(captured, question)
    _say_beginning(analysis, question)
    text, page = _render(args.format, analysis, question), _page(analysis, question) if args.html else ""
    finished()
    if args.html:
        write_atomic(args.html, page)
        _say(f"wrote {args.html}")
    sys.stdout.write(text)
    return failed.exit_code if failed else _exit_code(args.fail_on or config.fail_on, analysis)


def _question(args: argparse.Namespace, config: Config) -> Question:
    import torch

    from amptune.analyze.calibration.calibrate import with_present_measured
    from amptune.analyze.device import chosen_gpus
    from amptune.analyze.runner import Question

    gpus, named, note = chosen_gpus(tuple(args.gpu))
    if note:
        _say(note)
    if not args.no_calibrate_gpu:
        gpus, note = with_present_measured(gpus)
        if note:
            _say(note)
    rules = load_rules(GraphRule)
    select = codes(args.select) or _of_graph_rules(config.select, rules)
    ignore = (*_of_graph_rules(config.ignore, rules), *codes(args.ignore))
    select_rules(rules, select, ignore)  # a wrong selector is said before the model is captured
    return Question(
        gpus=gpus,
        gpus_named=named,
        recipes=tuple(recipe_named(name) for name in codes(args.recipe)) or STOCK,
        recipes_named=bool(args.recipe),
        mode="compile" if args.compile else "eager",
        train=not args.no_loss,
        torch_version=torch.__version__,
        path=_model(args, config).partition(":")[0],
        select=select,
        ignore=ignore,
        ignore_modules=config.ignore_modules,
    )


def _capture(args: argparse.Namespace, config: Config) -> tuple[Target, Capture]:
    from amptune.capture import capture, load_target
    from amptune.commands.targets import target_spec

    spec = target_spec(_model(args, config), args.arg, args.input, state=args.state, batch=args.batch)
    _say(f"capturing {spec.text}")
    target = load_target(spec)
    captured = capture(target, train=not args.no_loss, say=_say)
    for note in captured.notes:
        _say(f"note: {note}")
    _say(f"{len(captured.graph)} sites captured by {captured.frontend} in {captured.seconds:.1f} s")
    if (calls := len(captured.graph_module.graph.nodes)) > _MANY_CALLS:
        _say(f"judging what {calls:,} calls do")
    return target, captured


def _evidence(args: argparse.Namespace, target: Target, captured: Capture) -> tuple[Evidence, WorkError | None]:
    """What is known of the values, and why the step of --calibrate is not part of it, where it failed."""
    from amptune.analyze.assumed.evidence import gather

    def gathered(*, observe: bool) -> Evidence:
        return gather(target, captured, stated=args.range, observe=observe, train=not args.no_loss, say=_say)

    if not args.calibrate:
        return gathered(observe=False), None
    _say("running one step in FP32")
    try:
        return gathered(observe=True), None
    except WorkError as error:
        _say(f"error: {error.message}\n  the report is without what the step would have shown")
        return gathered(observe=False), error


def _say_beginning(analysis: Analysis, question: Question) -> None:
    """Where the recorded step broke, if no finding says so."""
    from amptune.analyze.findings.confirm import beginnings

    observed = question.evidence.observed
    if observed is None or analysis.capture is None or any("broke" in each.evidence for each in analysis.findings):
        return
    for site, words in beginnings(analysis.capture.graph, observed):
        at = f"{site.location.path}:{site.location.line}" if site.location else question.path
        _say(f"note: the step on the batch broke in FP32 already, first at {at} ({site.op} of {site.id}): {words}")
        return


def _model(args: argparse.Namespace, config: Config) -> str:
    return args.model or model_of(config)


def _of_graph_rules(selectors: Sequence[str], rules: Sequence[LoadedRule]) -> tuple[str, ...]:
    """Those selectors of the settings that speak of graph rules: the settings are lint's as well."""
    return tuple(code for code in selectors if any(rule.code.startswith(code) for rule in rules))


def _render(form: str, analysis: Analysis, question: Question) -> str:
    match form:
        case "json":
            from amptune.report import json

            return json.render(analysis.findings, extra=analysis.to_json())
        case "sarif":
            from amptune.report import sarif

            rules = select_rules(load_rules(GraphRule), question.select, question.ignore)
            return sarif.render(analysis.findings, rules=rules)
        case "github":
            from amptune.report import github

            return github.render(analysis.findings)
    return _text(analysis, question)


def _page(analysis: Analysis, question: Question) -> str:
    from amptune.analyze.pagedata import page_data
    from amptune.report.analyze_html import analyze_report

    return analyze_report(page_data(analysis, question))


def _text(analysis: Analysis, question: Question) -> str:
    from amptune.analyze.estimate import launch_words
    from amptune.analyze.sitetable import site_rows
    from amptune.report import ranges, table, text

    placed = [finding for finding in analysis.findings if finding.site is not None]
    general = [finding for finding in analysis.findings if finding.site is None]
    found = text.render(placed, lines=source_lines, color=takes_color()) + text.render(general, color=takes_color())
    launches = {gpu.key: launch_words(gpu, question.mode) for gpu in question.gpus if gpu.is_cuda}
    estimate = analysis.to_json()["estimate"]
    estimates = table.render_estimates(estimate, question.mode, launches)
    parts = [found or "no findings\n", estimates]
    if analysis.ranges and question.evidence.asked:
        parts.append(ranges.render_ranges(analysis.ranges, question.evidence.words))
    timed = [gpu for gpu in question.gpus if gpu.is_cuda]
    if timed:
        half = f"autocast-{timed[0].best_16bit}"
        stopped = {name for name, each in analysis.estimates.get(timed[0].key, {}).items() if each.stops}
        wanted = [name for name in ("fp32", "tf32", half) if name not in stopped]
        columns = [name for name in wanted if any(name in row.milliseconds for row in analysis.sites)]
        rows = site_rows(analysis.sites, half, stopped)
        parts.append(table.render_sites(rows, columns, timed[0].key, named=table.row_names(estimate)))
    return "\n".join(part for part in parts if part)


def _exit_code(fail_on: str, analysis: Analysis) -> int:
    if fail_on == "never":
        return 0
    lowest = Severity.parse(fail_on)
    return 1 if any(finding.severity >= lowest for finding in analysis.findings) else 0


def _say(text: str) -> None:
    print(f"amptune: {text}", file=sys.stderr, flush=True)
