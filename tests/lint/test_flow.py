"""Order of events: paths through branches, loops, early exits, helpers."""

from __future__ import annotations

import textwrap

import pytest

from amptune.lint.check import check_text, report_text
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.source import SourceFile
from amptune.testing import source_rules

RULES = [rule() for rule in source_rules(["amptune_rules"])]


def flows_of(code: str) -> list[Flow]:
    return SourceFile("a.py", "import torch\n" + textwrap.dedent(code)).flows


def only_flow(code: str) -> Flow:
    flows = flows_of(code)
    assert len(flows) == 1, [flow.function.name if flow.function else None for flow in flows]
    return flows[0]


def one(flow: Flow, kind: str) -> Event:
    events = [event for event in flow.events if event.kind == kind]
    assert len(events) == 1, [(event.kind, event.scaler) for event in flow.events]
    return events[0]


def has_path(code: str, start: str, end: str, without: tuple[str, ...] = (), same_iteration: bool = True) -> bool:
    flow = only_flow(code)
    return flow.path(one(flow, start), one(flow, end), without, same_iteration=same_iteration) is not None


SEQUENCE = """
    def step(scaler, loss, optimizer, model):
        scaler.scale(loss).backward()
        {between}
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
"""


def test_straight_line() -> None:
    code = SEQUENCE.format(between="pass")
    assert has_path(code, "backward", "clip", without=("unscale",))
    assert has_path(code, "clip", "step")
    assert not has_path(code, "step", "clip")


def test_blocked_by_an_event_between() -> None:
    assert not has_path(SEQUENCE.format(between="scaler.unscale_(optimizer)"), "backward", "clip", ("unscale",))


@pytest.mark.parametrize(
    ("first", "second", "correlated"),
    [
        ("use_clip", "use_clip", True),
        ("use_clip", "not use_clip", False),
        ("scale is not None", "scale", True),
        ("scale is None", "not scale", True),
        ("n > 0", "n > 0", True),
        ("n > 0", "not (n <= 0)", True),
        ("kind == 'a'", "not kind != 'a'", True),
        ("use_clip and n > 0", "n > 0 and use_clip", True),
        ("self.flag", "self.flag == True", True),
        ("hasattr(model, 'x')", "hasattr(model, 'x')", True),
        ("draw(1)", "draw(1)", False),
        ("use_clip", "n > 0", False),
    ],
)
def test_conditions_are_the_same_path(first: str, second: str, correlated: bool) -> None:
    code = f"""
    def step(self, model, loss, scaler, optimizer, use_clip, scale, n, kind):
        scaler.scale(loss).backward()
        if {first}:
            scaler.unscale_(optimizer)
        if {second}:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
    """
    assert has_path(code, "backward", "clip", without=("unscale",)) is not correlated


def test_an_assignment_ends_what_is_known() -> None:
    code = """
    def step(loss, scaler, optimizer, model, flag):
        scaler.scale(loss).backward()
        if flag:
            scaler.unscale_(optimizer)
        flag = other()
        if flag:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    """
    assert has_path(code, "backward", "clip", without=("unscale",))


def test_a_flag_set_in_a_branch() -> None:
    code = """
    def step(loss, scaler, optimizer, model, i, n):
        ready = False
        scaler.scale(loss).backward()
        if (i + 1) % n == 0:
            scaler.unscale_(optimizer)
            ready = True
        if ready:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    """
    assert not has_path(code, "backward", "clip", without=("unscale",))


def test_a_condition_with_a_name() -> None:
    code = """
    def train(batches, scaler, optimizer, model, n):
        for i, batch in enumerate(batches):
            last = (i + 1) % n == 0
            scaler.scale(model(batch)).backward()
            if last:
                scaler.unscale_(optimizer)
            if (i + 1) % n == 0:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
    """
    assert not has_path(code, "backward", "step", without=("unscale",))


def test_a_loop_variable_is_new_in_each_iteration() -> None:
    code = """
    def train(batches, scaler, optimizer, model, n):
        for i, batch in enumerate(batches):
            scaler.scale(model(batch)).backward()
            if (i + 1) % n == 0:
                scaler.step(optimizer)
            if (i + 1) % n != 0:
                scaler.update()
    """
    flow = only_flow(code)
    step, update = one(flow, "step"), one(flow, "update")
    assert flow.path(step, update, same_iteration=True) is None
    assert flow.path(step, update) is not None
    assert flow.path(step, step, without=("update",)) is not None


def test_round_the_loop_needs_the_update() -> None:
    loop = """
    def train(batches, scaler, optimizer, model):
        for batch in batches:
            scaler.scale(model(batch)).backward()
            scaler.step(optimizer)
            {last}
    """
    for last, found in (("scaler.update()", False), ("continue", True), ("pass", True)):
        flow = only_flow(loop.format(last=last))
        step = one(flow, "step")
        assert (flow.path(step, step, without=("update",)) is not None) is found, last


def test_early_exits() -> None:
    code = """
    def train(batches, scaler, optimizer, model):
        for batch in batches:
            loss = model(batch)
            scaler.scale(loss).backward()
            if not torch.isfinite(loss):
                {exit}
            scaler.step(optimizer)
            scaler.update()
    """
    for statement, around in (("continue", True), ("break", False), ("return", False), ("raise ValueError", False)):
        flow = only_flow(code.format(exit=statement))
        scale = one(flow, "scale")
        assert (flow.path(scale, scale, without=("update",)) is not None) is around, statement


def test_nested_loops_with_accumulation() -> None:
    code = """
    def train(batches, scaler, optimizer, model):
        for batch in batches:
            for part in batch.chunk(4):
                scaler.scale(model(part)).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    """
    flow = only_flow(code)
    backward, clip, step = one(flow, "backward"), one(flow, "clip"), one(flow, "step")
    assert flow.path(backward, clip, without=("unscale",)) is None
    assert flow.path(backward, backward, without=("step",)) is not None
    assert flow.path(step, backward, same_iteration=True) is None
    assert flow.path(step, backward) is not None
    assert flow.loops(step) == flow.loops(backward)[:1]


def test_else_of_a_loop_and_while_true() -> None:
    code = """
    def train(batches, scaler, optimizer, model):
        while True:
            scaler.scale(model(next(batches))).backward()
            if model.done:
                break
            scaler.step(optimizer)
        scaler.update()
    """
    flow = only_flow(code)
    scale, step, update = one(flow, "scale"), one(flow, "step"), one(flow, "update")
    assert flow.path(scale, update, without=("step",)) is not None
    assert flow.path(update, None) is not None
    assert flow.path(step, step) is not None
    assert flow.path(update, step) is None


def test_handlers_start_from_the_state_before_the_try() -> None:
    code = """
    def train(batches, scaler, optimizer, model):
        for batch in batches:
            try:
                scaler.scale(model(batch)).backward()
                scaler.step(optimizer)
            except RuntimeError:
                optimizer.zero_grad()
                continue
            finally:
                scaler.update()
    """
    flow = only_flow(code)
    assert flow.path(one(flow, "step"), one(flow, "zero_grad"), same_iteration=True) is None
    assert flow.path(one(flow, "step"), one(flow, "update"), same_iteration=True) is not None


def test_match() -> None:
    code = """
    def step(loss, scaler, optimizer, model, mode):
        scaler.scale(loss).backward()
        match mode:
            case "clip":
                scaler.unscale_(optimizer)
            case _:
                pass
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    """
    assert has_path(code, "backward", "clip", without=("unscale",))


def test_conditional_expression_branches() -> None:
    code = """
    def step(loss, scaler, optimizer, model):
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer) if model.clip else None
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) if model.clip else None
    """
    assert not has_path(code, "backward", "clip", without=("unscale",))


@pytest.mark.parametrize(
    ("condition", "is_a_switch"),
    [
        ("use_amp", True),
        ("self.args.fp16", True),
        ("not args.no_amp", True),
        ("not self.disable_amp", True),
        ("precision == 'fp16'", True),
        ("precision != 'fp32'", True),
        ("scaler.is_enabled()", True),
        ("scaler", True),
        ("self.use_grad_scaling", True),
        ("sample", False),
        ("clip", False),
        ("i % n == 0", False),
        ("use_bf16", False),
    ],
)
def test_paths_with_mixed_precision_off_are_not_taken(condition: str, is_a_switch: bool) -> None:
    code = f"""
    def step(self, loss, scaler, optimizer, model, use_amp, args, precision, sample, clip, i, n, use_bf16):
        scaler.scale(loss).backward()
        if {condition}:
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    """
    assert has_path(code, "backward", "clip", without=("unscale",)) is not is_a_switch


def test_scaler_made_under_a_flag() -> None:
    code = """
    def train(args, batches, model, optimizer):
        scaler = torch.amp.GradScaler("cuda") if args.low_memory else None
        for batch in batches:
            loss = model(batch)
            if scaler:
                scaler.scale(loss).backward()
            else:
                loss.sum().backward()
            if args.low_memory:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    """
    flow = only_flow(code)
    scaled = next(event for event in flow.of("backward") if event.scaled)
    assert flow.path(scaled, one(flow, "clip"), without=("unscale",), same_iteration=True) is None


def test_helpers_are_inlined_in_the_callers_words() -> None:
    code = """
    def finish(grad_scaler, opt, model, clip=None):
        if clip is not None:
            grad_scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        grad_scaler.step(opt)
        grad_scaler.update()

    class Trainer:
        def __init__(self):
            self.scaler = torch.amp.GradScaler("cuda")

        def fit(self, batches):
            for batch in batches:
                self.scaler.scale(self.model(batch)).backward()
                finish(self.scaler, self.optimizer, self.model, clip=1.0)
    """
    flow = only_flow(code)
    step = one(flow, "step")
    assert (step.scaler, step.optimizer) == ("self.scaler", "self.optimizer")
    assert step.function is not None
    assert step.function.name == "finish"
    assert len(step.calls) == 1
    assert flow.path(one(flow, "backward"), one(flow, "clip"), without=("unscale",)) is None


def test_an_argument_that_is_none_closes_its_branch() -> None:
    code = """
    def finish(scaler, opt, clip=None):
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(opt.parameters(), clip)
        scaler.step(opt)

    def train(scaler, opt, loss):
        scaler.scale(loss).backward()
        finish(scaler, opt)
    """
    flow = only_flow(code)
    assert flow.path(one(flow, "backward"), one(flow, "clip")) is None
    assert flow.path(one(flow, "backward"), one(flow, "step")) is not None


def test_methods_and_objects_of_the_file_are_entered() -> None:
    code = """
    class Worker:
        def __init__(self, scaler):
            self.scaler = scaler

        def backward(self, loss):
            self.scaler.scale(loss).backward()

        def step(self, optimizer):
            self.scaler.step(optimizer)
            self.scaler.update()

    def train(batches, model, optimizer, scaler):
        worker = Worker(scaler)
        for batch in batches:
            worker.backward(model(batch))
            worker.step(optimizer)
    """
    flow = only_flow(code)
    step = one(flow, "step")
    assert flow.path(step, step, without=("update",)) is None
    assert flow.path(one(flow, "backward"), step, same_iteration=True) is not None


def test_recursion_ends() -> None:
    code = """
    def walk(scaler, loss, n):
        scaler.scale(loss).backward()
        if n:
            walk(scaler, loss, n - 1)
    """
    flow = only_flow(code)
    assert [event.kind for event in flow.events] == ["scale", "backward"]


def test_many_independent_branches_stay_fast() -> None:
    branches = "\n".join(
        f"        if c{i}:\n            scaler.unscale_(o{i})\n        if c{i}:\n            scaler.step(o{i})"
        for i in range(40)
    )
    flow = only_flow(f"    def step(scaler, **o):\n{branches}\n        scaler.update()\n")
    update = one(flow, "update")
    assert flow.path(flow.of("unscale")[0], update) is not None


def test_module_level_code_has_a_flow() -> None:
    flow = only_flow("""
    scaler = torch.amp.GradScaler("cuda")
    for batch in loader:
        scaler.scale(model(batch)).backward()
        scaler.step(optimizer)
        scaler.update()
    """)
    assert flow.function is None
    assert [event.kind for event in flow.events] == ["scale", "backward", "step", "update"]


def test_shadowed_names_do_not_mix() -> None:
    code = """
    def inner(scaler, opt):
        loss = opt.loss
        if loss:
            scaler.unscale_(opt)

    def outer(scaler, opt, loss):
        scaler.scale(loss).backward()
        inner(scaler, opt)
        if loss:
            torch.nn.utils.clip_grad_norm_(opt.parameters(), 1.0)
    """
    assert has_path(code, "backward", "clip", without=("unscale",))


def test_a_nested_function_shares_the_names_around_it() -> None:
    code = """
    def train(batches, model, optimizer):
        scaler = torch.amp.GradScaler("cuda")
        def finish():
            scaler.step(optimizer)
            scaler.update()
        for batch in batches:
            scaler.scale(model(batch)).backward()
            finish()
    """
    flow = only_flow(code)
    step = one(flow, "step")
    assert (step.scaler, step.optimizer) == ("scaler", "optimizer")
    assert flow.path(step, step, without=("update",)) is None


def test_names_are_shown_without_marks() -> None:
    code = """
    def helper(model, n):
        amp_scaler = torch.amp.GradScaler("cuda")
        amp_scaler.scale(model(n)).backward()

    def train(model):
        helper(model, 3)

    def outer(scaler):
        def callback(loss, opt):
            scaler.scale(loss).backward()
            scaler.step(opt)
        return callback
    """
    events = [event for flow in flows_of(code) for event in flow.events]
    scalers = {event.scaler for event in events if event.kind == "scale"}
    assert {event.scaler_name for event in events if event.kind == "scale"} == {"amp_scaler", "scaler"}
    assert any("#" in scaler for scaler in scalers)
    assert any("@" in scaler for scaler in scalers)


def test_a_long_script_ends() -> None:
    body = "".join(
        f"scaler.scale(loss{i}).backward()\nscaler.unscale_(opt)\nif c{i}:\n    clip_grad_norm_(p, 1.0)\n"
        "scaler.step(opt)\nscaler.update()\n"
        for i in range(400)
    )
    flow = only_flow("from torch.nn.utils import clip_grad_norm_\n" + body)
    found = [flow.path(a, b, ("unscale",)) for a in flow.of("backward")[::4] for b in flow.of("clip")[::4]]
    assert not any(found)


def test_deep_nesting_is_one_error() -> None:
    chain = "if x == 0:\n    scaler.step(opt)\n" + "".join(
        f"elif x == {i}:\n    scaler.scale(loss).backward()\n" for i in range(1, 900)
    )
    report = report_text("a.py", chain + "scaler.update()\n", RULES)
    assert [error.message for error in report.errors] == ["nested too deeply for some rules"]


def test_a_helper_speaks_in_the_words_of_its_caller() -> None:
    flow = only_flow("""
    class Trainer:
        def __init__(self):
            self.scaler = torch.amp.GradScaler("cuda")

        def clip(self, opt, *, sc):
            sc.unscale_(opt)

        def step(self, loss):
            self.scaler.scale(loss).backward()
            self.clip(self.optimizer, sc=self.scaler)
            self.scaler.step(self.optimizer)
    """)
    unscale = one(flow, "unscale")
    assert (unscale.scaler, unscale.optimizer) == ("self.scaler", "self.optimizer")
    assert flow.path(one(flow, "backward"), one(flow, "step"), without=("unscale",)) is None


def test_loops_that_are_not_gone_round() -> None:
    flow = only_flow("""
    def step(scaler, batches, optimizers, model):
        for batch in batches:
            for optimizer in optimizers:
                scaler.scale(model(batch)).backward()
                scaler.step(optimizer)
            scaler.update()
    """)
    step, backward = one(flow, "step"), one(flow, "backward")
    assert flow.path(step, backward, without=("update",)) is not None
    assert flow.path(step, backward, without=("update",), not_round=flow.loops(step)[-1:]) is None


def test_nothing_is_said_of_code_behind_a_call_that_is_too_deep() -> None:
    helpers = "".join(f"def down{level}(scaler, opt):\n    down{level + 1}(scaler, opt)\n\n" for level in range(7))
    code = (
        helpers
        + """
def down7(scaler, opt):
    scaler.unscale_(opt)

def step(scaler, loss, opt, model):
    scaler.scale(loss).backward()
    down0(scaler, opt)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(opt)
    scaler.update()
"""
    )
    flow = next(flow for flow in flows_of(code) if flow.of("clip"))
    backward, clip = one(flow, "backward"), one(flow, "clip")
    assert flow.path(backward, clip) is None
    assert flow.may_reach(backward, clip, without=("unscale",))
    assert not [found for found in check_text("a.py", "import torch\n" + code, RULES) if found.rule == "AMP101"]


def test_a_search_that_ended_rules_a_path_out() -> None:
    flow = only_flow(SEQUENCE.format(between="scaler.unscale_(optimizer)"))
    assert flow.may_reach(one(flow, "backward"), one(flow, "clip"))
    assert not flow.may_reach(one(flow, "backward"), one(flow, "clip"), without=("unscale",))
