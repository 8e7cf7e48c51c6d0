"""``capture``: tries the frontends in order, and says which one worked and what it assumed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from torch import fx, nn

from amptune.capture.build import build_calls, build_graph
from amptune.capture.calls import Call
from amptune.capture.cutoff import cut_off
from amptune.capture.failure import Attempt, explained
from amptune.capture.frontends import Frontends, Recorded, TooLargeError
from amptune.capture.target import Target
from amptune.capture.untrained import untrained_note
from amptune.capture.usercode import UserCodeError, quiet, user_code
from amptune.core.graph import PrecisionGraph, Site
from amptune.core.ops import OPS
from amptune.errors import UsageError

Frontend = Literal["export", "record-fake", "record-real"]
FRONTENDS: tuple[Frontend, ...] = ("export", "record-fake", "record-real")
EXPORT_LIMIT = 400
"""Modules from which torch.export is left out: it takes about 5 ms a call, a recorded forward about 1 ms."""
EXPORT_CALLS = 1_500
"""Calls from which it is left out too: loops over the steps of a sequence make many in few modules."""
_GRADIENT = "grad"
"""The op that torch.autograd.grad is recorded as."""
MOST_CALLS = 5_000
"""Calls of sites, beyond twice the sites, up to which each call is judged for itself: long loops are one site."""


def takes_gradients(graph: PrecisionGraph) -> bool:
    """Whether the forward or the loss takes gradients itself, which it cannot under ``torch.no_grad``."""
    return bool(_own_gradients(graph))


def _own_gradients(graph: PrecisionGraph) -> list[Site]:
    return [site for site in graph if site.op == _GRADIENT and not site.opaque]


@dataclasses.dataclass(frozen=True)
class Capture:
    """What a capture gives.

    Attributes:
        graph_module: the forward (and loss) as fx nodes; ``meta["amptune_op"]`` names each node's op.
        graph: its sites and the tensors between them.
        frontend: which way worked.
        seconds: wall time of the capture.
        has_loss: whether the user's loss is part of the graph.
        notes: what was guessed, assumed or given up, for the user to read.
        model: what was captured; ``None`` for a graph that was made otherwise.
    """

    graph_module: fx.GraphModule
    graph: PrecisionGraph
    frontend: Frontend
    seconds: float
    has_loss: bool
    notes: tuple[str, ...]
    model: nn.Module | None = dataclasses.field(default=None, repr=False, compare=False)

    def by_calls(self) -> PrecisionGraph:
        """The graph with each call of a site apart; ``graph`` itself where no site is called twice, or too many are."""
        calls = sum(site.calls for site in self.graph)
        if self.model is None or calls == len(self.graph) or calls > MOST_CALLS + 2 * len(self.graph):
            return self.graph
        return build_calls(self.graph_module, self.model)


def capture(
    target: Target,
    *,
    frontends: Sequence[str] = FRONTENDS,
    train: bool = True,
    say: Callable[[str], None] | None = None,
) -> Capture:
    """Capture the target's forward and loss, by the first frontend that shows what a training step runs.

    torch.export is kept only where it sees the sites that a recorded forward sees: models ask whether they are being
    exported, and then take another path (masks for all cases in place of a causal kernel).

    Args:
        target: what to capture.
        frontends: which to try, in order.
        train: whether the model is in training mode.
        say: told how far a long capture is.

    Raises:
        UsageError: an unknown frontend.
        TargetError: the model or the batch cannot be made.
        CaptureError: the model does not run, or no frontend can capture it.
    """
    unknown = [name for name in frontends if name not in FRONTENDS]
    if unknown or not frontends:
        raise UsageError(f"unknown frontend {', '.join(unknown) or '(none)'}; known: {', '.join(FRONTENDS)}")
    start = time.perf_counter()
    attempts = _Attempts(target, train, say)
    with quiet():
        done = attempts.first(frontends)
    notes = tuple(dict.fromkeys([*target.notes, *attempts.frontends.notes, *attempts.notes, *_remarks(done, train)]))
    return Capture(
        done.module, done.graph, done.frontend, time.perf_counter() - start, done.has_loss, notes, done.model
    )


def _remarks(done: _Done, train: bool) -> Iterator[str]:
    """What the user should know about a graph."""
    gradients = _own_gradients(done.graph)
    if gradients:
        yield (f"the forward or loss takes gradients itself{_at(gradients)}: neither that backward nor the one through "
               "it is priced or judged, so predicted times and memory are too low")  # fmt: skip
    if train and (again := _sites_of(done, lambda call: call.recomputed)):
        shown = f"{len(again)} site{'s' * (len(again) > 1)}"
        yield (f"torch.utils.checkpoint runs the forward of {shown} again in the backward{_at(again[:1])}, which is "
               "not priced: predicted times are too low, memory, with all that it would keep, too high")  # fmt: skip
    if sites := _sites_of(done, lambda call: call.mapped):
        yield (f"what runs under torch.func.vmap{_at(sites[:1])} is shown and priced as for one of its samples, so "
               "predicted times and memory are too low")  # fmt: skip
    unknown = sorted({site.op for site in done.graph if site.op not in OPS and not site.opaque} - {_GRADIENT})
    if unknown:
        yield f"ops outside amptune's table, which no rule looks at: {', '.join(unknown)}"
    opaque = sorted({site.op for site in done.graph if site.opaque and site.op not in OPS})
    if opaque:
        yield f"code that amptune does not look into, and that computes in what it is given: {', '.join(opaque)}"
    if done.frontend == "record-real":
        yield "the path through the model is that of one real run with this batch"
    hidden = _is_hidden(done.graph)
    note = untrained_note(done.model, has_gradient=done.has_gradient, is_hidden=hidden) if train else None
    if note:
        yield f"{note}; what is predicted has no backward"


def _at(sites: Sequence[Site]) -> str:
    places = [f"{each.location.path}:{each.location.line}" for each in sites if each.location]
    return f" ({', '.join(dict.fromkeys(places))})" if places else ""


def _sites_of(done: _Done, holds: Callable[[Call], bool]) -> list[Site]:
    """The sites of a graph with a call of which something holds."""
    calls = ((node.name, node.meta.get("amptune_call")) for node in done.module.graph.nodes)
    found = {name for name, call in calls if call is not None and holds(call)}
    return [site for site in done.graph if not found.isdisjoint(site.nodes)]


def _is_hidden(graph: PrecisionGraph) -> bool:
    """Whether code that no graph shows has a part in it: what that gives on fake tensors may lack its gradient."""
    return any(site.opaque and site.op not in OPS for site in graph)


@dataclasses.dataclass(frozen=True)
class _Done:
    frontend: Frontend
    module: fx.GraphModule
    graph: PrecisionGraph
    has_loss: bool
    has_gradient: bool
    model: nn.Module


class _Attempts:
    """One capture: tries frontends in order, and keeps what failed."""

    def __init__(self, target: Target, train: bool, say: Callable[[str], None] | None) -> None:
        self.frontends = Frontends(target, train=train, say=say)
        self.notes: list[str] = []
        self.failed: list[Attempt] = []
        self._done: dict[str, _Done | None] = {}
        self._too_large: TooLargeError | None = None

    def first(self, names: Sequence[str]) -> _Done:
        """What the first frontend that works gives.

        Raises:
            CaptureError: none of them works.
        """
        for name in names:
            done = self._export(names) if name == "export" else self._try(name)
            if done is not None:
                return done
        if self._too_large is not None and all(attempt.needs_values for attempt in self.failed):
            raise self._too_large
        raise explained(self.failed)

    def _export(self, names: Sequence[str]) -> _Done | None:
        """The exported graph, if it shows what a recorded forward shows; else the recorded one."""
        recorded = self._try("record-fake") if "record-fake" in names else None
        if "record-fake" in names and recorded is None:
            return None  # what fakes cannot run cannot be exported either
        if recorded is not None and (reason := self._too_long_for_export(recorded)):
            self.notes.append(f"torch.export was left out: {reason}")
            return recorded
        exported = self._try("export")
        if exported is None or recorded is None or _same_sites(exported.graph, recorded.graph):
            return exported or recorded
        return recorded  # what runs is what counts, and nothing that a user could change makes them differ

    def _too_long_for_export(self, recorded: _Done) -> str:
        calls = len(recorded.module.graph.nodes)
        if self.frontends.module_count > EXPORT_LIMIT:
            return f"the model has {self.frontends.module_count} modules"
        return f"a forward makes {calls:,} calls" if calls > EXPORT_CALLS else ""

    def _try(self, name: str) -> _Done | None:
        if name not in self._done:
            self._done[name] = self._attempt(name)
        return self._done[name]

    def _attempt(self, name: str) -> _Done | None:
        ways: dict[str, tuple[Frontend, Callable[[], Recorded]]] = {
            "export": ("export", self.frontends.export),
            "record-fake": ("record-fake", self.frontends.record_fake),
            "record-real": ("record-real", self.frontends.record_real),
        }
        frontend, run = ways[name]
        try:
            with user_code():
                found = run()
        except UserCodeError as error:
            self.failed.append(Attempt(name, error, *self.frontends.failed_in, self.frontends.in_loss))
            return None
        except TooLargeError as error:
            self._too_large = error
            return None
        model = found.prepared.model
        graph = build_graph(found.module, model)
        cut_off(graph, whole=not (found.has_gradient or _is_hidden(graph)))
        return _Done(frontend, found.module, graph, found.has_loss, found.has_gradient, model)


def _same_sites(first: PrecisionGraph, second: PrecisionGraph) -> bool:
    return {_seen(site) for site in first} == {_seen(site) for site in second}


def _seen(site: Site) -> tuple[object, ...]:
    """What two frontends must agree on."""
    shapes = tuple((meta.shape, meta.dtype) for meta in (*site.inputs, *site.outputs))
    return site.id, site.op, site.calls, site.gemms, site.sources, shapes, repr(sorted(site.attrs.items()))
