"""Whether a plan is really in force: a recorded forward and backward, compared with the plan.

A published tuner measured the previous sample for months. So every trial that counts is looked at op by op.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from amptune.apply.held import held_values
from amptune.apply.recorder import TOGETHER, FunctionRun, OpRun, Record, recording
from amptune.apply.support import how_to_apply
from amptune.core.formats import Format
from amptune.core.ops import Family, op_named
from amptune.core.plan import HELD, Plan, SitePlan
from amptune.core.runtimetable import decided_paths

_BY_INPUT = (Family.GEMM, Family.CONV, Family.ATTENTION, Family.RNN)


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """A site that does not do what the plan says.

    Attributes:
        site: its id.
        phase: "forward", "backward", or "eval" for a forward in eval mode without gradients.
        expected: the planned format.
        found: what was seen instead, in words.
    """

    site: str
    phase: str
    expected: Format
    found: str

    def __str__(self) -> str:
        return f"{self.site}: planned {self.expected}, but in the {self.phase} {self.found}"


def check_realised(
    model: nn.Module,
    run: Callable[[], None],
    plan: Plan,
    *,
    takes_gradients: bool = False,
    evaluates: bool = True,
    region: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> list[Mismatch]:
    """Run a forward and backward, then a forward in eval mode, and compare what ran with the plan.

    Products of matrices are judged by the dtype of their inputs, in the backward too; other modules by their outputs.
    A planned module must be called where its weights are used, must read them in each forward, and must give them
    gradients.

    Args:
        model: the model that the plan is in force on, not compiled.
        run: runs ``model`` and the backward of its loss once; what it leaves in ``.grad`` stays.
        plan: what should be in force.
        takes_gradients: the forward takes gradients itself, so that it cannot run without them in eval mode either.
        evaluates: the model runs in eval mode; else that part is left out.
        region: entered around the forward in eval mode: the autocast region that ``run`` enters around its own.

    Returns:
        What differs; empty when the plan is in force.
    """
    sites = _module_sites(model, plan)
    functions = _function_sites(plan)
    with recording(model, set(sites), functions=bool(functions)) as trained:
        run()
    found = [*_check_modules(model, sites, trained, "forward"), *_check_gradients(model, sites, trained)]
    found += _check_held(model, plan, trained)
    found += _check_functions(functions, trained)
    if trained.root_call is not None and evaluates:
        args, kwargs = trained.root_call
        with _evaluating(model, takes_gradients), region(), recording(model, set(sites)) as evaluated:
            model(*args, **kwargs)
        found += _check_modules(model, sites, evaluated, "eval")
    return list(dict.fromkeys(found))


def stale_weight_casts(
    model: nn.Module, step: Callable[[], None], run: Callable[[], None], plan: Plan
) -> list[Mismatch]:
    """Planned modules that still compute with old weights after an optimizer step.

    Args:
        model: the model that the plan is in force on.
        step: a whole training step: forward, backward, optimizer.
        run: a forward, with or without backward.
        plan: what is in force.
    """
    sites = _module_sites(model, plan)
    step()
    with recording(model, set(sites)) as record:
        run()
    return [mismatch for path, site in sites.items() for mismatch in _check_reads(model, path, site, record, "forward")]


def _module_sites(model: nn.Module, plan: Plan) -> dict[str, SitePlan]:
    """The modules that the plan puts in force, by the path that ``named_modules`` gives them first."""
    first = {id(module): path for path, module in model.named_modules()}
    modules = {path: site for path, site in decided_paths(plan).items() if site.how not in HELD}
    return {first[id(model.get_submodule(path))]: site for path, site in modules.items()}


def _function_sites(plan: Plan) -> dict[tuple[str, str], list[SitePlan]]:
    """Sites of functional ops that the source or their inputs decide: (module path, op) -> sites in order of n."""
    sites: dict[tuple[str, str], list[SitePlan]] = {}
    for name, site in plan.sites.items():
        path, is_function, op = name.partition("#")
        if is_function and site.how in ("source", "follow"):
            sites.setdefault((path, op.rpartition(".")[0]), []).append(site)
    return sites


def _dtype(number_format: Format) -> torch.dtype:
    return getattr(torch, number_format.torch_name)  # type: ignore[no-any-return]


def _output_dtype(site: SitePlan) -> torch.dtype:
    return torch.bfloat16 if site.format.is_fp8 else _dtype(site.format)


def _is_wrong(site: SitePlan, op: OpRun) -> bool:
    """Whether a product of the site multiplies other formats than planned; in FP8 the gradient may have its own."""
    expected = {_dtype(site.format)}
    if op.phase == "backward" and site.scaling == "tensorwise":
        return op.inputs != expected | {torch.float8_e5m2}
    if op.phase == "backward" and site.scaling == "rowwise_gw_hp" and not op.is_scaled:
        expected = {torch.bfloat16}
    return bool(op.inputs - expected)


def _names(dtypes: frozenset[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


@contextlib.contextmanager
def _evaluating(model: nn.Module, takes_gradients: bool) -> Iterator[None]:
    """Eval mode, without gradients unless the forward takes some; each module gets its own mode back."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.set_grad_enabled(takes_gradients):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _check_modules(model: nn.Module, sites: Mapping[str, SitePlan], record: Record, forward: str) -> Iterator[Mismatch]:
    ops: dict[str | None, list[OpRun]] = {}
    for op in record.ops:
        ops.setdefault(op.planned, []).append(op)
    for path, site in sites.items():
        yield from _check_reads(model, path, site, record, forward)
        yield from _check_ops(path, site, ops.get(path, []), model.get_submodule(path), forward)
        yield from _check_outputs(path, site, record, model.get_submodule(path), forward)


def _check_ops(path: str, site: SitePlan, ops: list[OpRun], module: nn.Module, forward: str) -> Iterator[Mismatch]:
    """Products by their inputs; in a module without parameters, all arithmetic of the forward by its results."""
    if site.how == "autocast" and how_to_apply(module) != "autocast":
        yield from _check_region(path, site, ops, forward)
        return
    bare = next(module.parameters(), None) is None
    if site.scaling == "rowwise_gw_hp" and _weight_gradient_is_scaled(module, ops):
        yield Mismatch(path, "backward", site.format, "the weight gradient is a scaled product, not one in bfloat16")
    for op in ops:
        phase = forward if op.phase == "forward" else "backward"
        if op.is_gemm and _is_wrong(site, op):
            yield Mismatch(path, phase, site.format, f"{op.op} multiplies {_names(op.inputs)}")
        elif bare and op.phase == "forward" and op.computes and op.outputs - {_dtype(site.format)}:
            yield Mismatch(path, phase, site.format, f"{op.op} gives {_names(op.outputs)}")


def _check_region(path: str, site: SitePlan, ops: list[OpRun], forward: str) -> Iterator[Mismatch]:
    """Of functions in an autocast region some run in FP32 by its rules, ``cdist`` with a product in it: not all do."""
    products = [op.inputs for op in ops if op.is_gemm and op.phase == "forward"]
    if products and all(inputs - {_dtype(site.format)} for inputs in products):
        yield Mismatch(path, forward, site.format, f"its functions multiply {_names(frozenset().union(*products))}")


def _weight_gradient_is_scaled(module: nn.Module, ops: list[OpRun]) -> bool:
    """Whether the backward of a Linear, which computes the gradient of its weight, has scaled products only."""
    products = [op for op in ops if op.is_gemm and op.phase == "backward"]
    trains = any(parameter.requires_grad and parameter.dim() > 1 for parameter in module.parameters())
    return trains and bool(products) and all(op.is_scaled for op in products)


def _check_outputs(path: str, site: SitePlan, record: Record, module: nn.Module, forward: str) -> Iterator[Mismatch]:
    # A module without parameters gives back its input's dtype, and a container what its last child does.
    if next(module.parameters(), None) is None or how_to_apply(module) is None:
        return
    for run in record.modules:
        if run.path == path and run.outputs - {_output_dtype(site)}:
            yield Mismatch(path, forward, site.format, f"its output is {_names(run.outputs)}")


def _check_reads(model: nn.Module, path: str, site: SitePlan, record: Record, forward: str) -> Iterator[Mismatch]:
    """A module that is called reads its weights; one that is not called does not have them read behind its back."""
    module = model.get_submodule(path)
    if how_to_apply(module) != "swap":
        return
    called = path in record.called
    for name, parameter in module.named_parameters(recurse=False):
        readers = record.read.get(id(parameter), set())
        if called and not readers:
            yield Mismatch(path, forward, site.format, f"it computes with an old copy of its {name}")
        elif not called and readers - {TOGETHER} and not _used_by_another(model, parameter, record):
            yield Mismatch(path, forward, site.format, f"its {name} is used without calling it")


def _check_held(model: nn.Module, plan: Plan, record: Record) -> Iterator[Mismatch]:
    """A tensor that a module holds is read where the plan puts it in 16 bits, and gets its gradient.

    That what it meets has the format is the other sites' affair.
    """
    held = held_values(model)
    for path, site in plan.sites.items():
        if site.how not in HELD or site.format is Format.FP32 or not record.called:
            continue
        tensor = held[path]
        if id(tensor) not in record.read:
            yield Mismatch(path, "forward", site.format, "nothing reads it")
        elif tensor.requires_grad and id(tensor) not in record.with_gradient:
            yield Mismatch(path, "backward", site.format, "it gets no gradient")


def _used_by_another(model: nn.Module, parameter: nn.Parameter, record: Record) -> bool:
    """Whether a module that was called has the same parameter as its own."""
    owners = (
        path for path, module in model.named_modules() if any(p is parameter for p in module._parameters.values())
    )
    return any(path in record.called for path in owners)


def _check_gradients(model: nn.Module, sites: Mapping[str, SitePlan], record: Record) -> Iterator[Mismatch]:
    """A module that takes part in the backward gives its weights gradients; a cast without a graph would not."""
    in_backward = {op.planned for op in record.ops if op.phase == "backward"}
    cut = {run.path for run in record.modules if run.grad_enabled and run.outputs and not run.requires_grad}
    for path, site in sites.items():
        module = model.get_submodule(path)
        if how_to_apply(module) != "swap" or not (path in in_backward or path in cut):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in record.with_gradient:
                yield Mismatch(path, "backward", site.format, f"its {name} gets no gradient")


def _check_functions(sites: Mapping[tuple[str, str], list[SitePlan]], record: Record) -> Iterator[Mismatch]:
    """Functional ops, by module and op: each format that ran is planned there, and each that is planned ran.

    Which of several calls of one op in one forward is which, a run alone cannot say.
    """
    for (path, op), planned in sites.items():
        formats = {site.format for site in planned}
        seen = [_computes_in(run) for run in record.functions if run.path == path and run.op == op]
        wrong = frozenset().union(*seen) - {_dtype(item) for item in formats}
        if Format.FP32 in formats:
            wrong -= {torch.float64}  # a pin casts what has fewer bits
        name = f"{path}#{op}"
        if wrong:
            yield Mismatch(name, "forward", planned[0].format, f"{op} computes in {_names(wrong)}")
        elif len(formats) > 1 and seen and {_dtype(item) for item in formats} - frozenset().union(*seen):
            yield Mismatch(name, "forward", planned[0].format, "not all of its calls differ as planned")


def _computes_in(run: FunctionRun) -> frozenset[torch.dtype]:
    return run.inputs if op_named(run.op).family in _BY_INPUT else run.outputs
