"""Questions about the order of events: is there a path from this event to that one without a third?"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import cached_property

from amptune.lint.cfgnodes import Cfg, Edge
from amptune.lint.events import Event, EventKind
from amptune.lint.index import FunctionNode

Blocker = Callable[[Event], bool] | Collection[str]
_MAX_STATES = 20_000
# Steps that all questions to one flow may take together, about two seconds: what is then left has no answer.
_BUDGET = 1_500_000
_MAX_ATOMS = 64
_FEW_ATOMS = 10
# A flag that switches mixed precision on. Paths on which it is off are not what the scaler rules are about.
_AMP_FLAG = re.compile(r"amp|fp16|float16|half|mixed|scaler|scaling|autocast", re.IGNORECASE)
_NOT_AMP_FLAG = re.compile(
    r"bf16|bfloat|sample|example|clamp|stamp|ramp|damp|amplitude|campaign|apex|%| < |len\(", re.IGNORECASE
)
_NO_AMP_FLAG = re.compile(
    r"(?:^|[._])(?:no|not|disable|without|skip|wo)_?(?:grad_?)?(?:amp|fp16|half|mixed|scal|auto)"
    r"|fp32|float32|full_precision",
    re.IGNORECASE,
)

_State = tuple[int, int, int]  # node, known atoms, their values (bit masks)
_States = dict[int, list[_State]]  # by node


@dataclasses.dataclass(frozen=True)
class _Search:
    """One question: conditions that are kept track of, those that are given, what blocks, loops not to go round."""

    mask: int
    fixed: tuple[int, int]
    blocks: Callable[[Event], bool]
    barred: frozenset[int]


class Flow:
    """The events of one function in the order of control flow, helper functions of the file inlined.

    Attributes:
        function: the root; None for module level.
        events: all events, in the order in which they were met; one call in a helper that is entered twice is two.
    """

    def __init__(self, function: FunctionNode | None, cfg: Cfg) -> None:
        self.function = function
        self.functions = frozenset(cfg.functions)
        self._nodes = cfg.nodes
        self._is_whole = cfg.is_whole
        self._at: dict[Event, int] = {node.event: i for i, node in enumerate(cfg.nodes) if node.event is not None}
        self.events: list[Event] = list(self._at)
        self._budget = _BUDGET

    def of(self, *kinds: EventKind, scaler: str | None = None) -> list[Event]:
        """Events of these kinds; with ``scaler``, only those of that scaler."""
        return [event for event in self.events if event.kind in kinds and scaler in (None, event.scaler)]

    def path(
        self, start: Event | None, end: Event | None, without: Blocker = (), *, same_iteration: bool = False,
        not_round: Collection[int] = (),
    ) -> tuple[Event, ...] | None:  # fmt: skip
        """The events on some path from ``start`` to ``end`` with no event of ``without`` strictly between them.

        Both sides of one condition's text are one path: after ``if use_amp:`` the else of a later ``if use_amp:`` is
        not taken, until something it mentions is assigned. Where a scaler takes part, conditions that switch mixed
        precision off are not taken either.

        Args:
            start: None for the entry of the function.
            end: None for its normal end. The same event as ``start``: a path around a loop back to it.
            without: kinds of events, or a predicate.
            same_iteration: do not start a new iteration of a loop that holds both ``start`` and ``end``.
            not_round: loops, as ``loops`` names them, of which no new iteration is started.

        Returns:
            The events on the path, ``start`` and ``end`` included; None when none was found. That is no proof that
            there is none, as the search ends after a number of steps: what keeps a finding back asks ``may_reach``.
        """
        return self._ask(start, end, without, same_iteration, not_round)[0]

    def may_reach(
        self, start: Event | None, end: Event | None, without: Blocker = (), *, same_iteration: bool = False
    ) -> bool:
        """Whether a ``path`` was found, or none can be ruled out because the search gave up."""
        found, is_complete = self._ask(start, end, without, same_iteration, ())
        return found is not None or not is_complete

    def loops(self, event: Event) -> tuple[int, ...]:
        """Identities of the loops around an event, outermost first, through the calls that lead to it."""
        return self._nodes[self._at[event]].loops

    # The search: breadth first over (node, conditions known there). With each answer comes whether all was searched.

    def _ask(
        self, start: Event | None, end: Event | None, without: Blocker, same_iteration: bool, not_round: Collection[int]
    ) -> tuple[tuple[Event, ...] | None, bool]:
        blocks = without if callable(without) else (lambda event: event.kind in without)
        source = 0 if start is None else self._at[start]
        target = 1 if end is None else self._at[end]
        mask = self._relevant_bits(source, target, blocks)
        fixed = self._assumed([event for event in (start, end) if event])
        search = _Search(mask, fixed, blocks, frozenset())
        reached, all_reached = ({0: [(0, *fixed)]}, True) if start is None else self._reached(search)
        common = self._common_loops(source, target) if same_iteration else frozenset()
        search = dataclasses.replace(search, barred=common.union(not_round))
        found, is_complete = self._find(reached.get(source, []), target, search)
        return found, all_reached and is_complete and self._is_whole

    def _find(self, starts: list[_State], target: int, search: _Search) -> tuple[tuple[Event, ...] | None, bool]:
        came: dict[_State, _State | None] = dict.fromkeys(starts)
        queue = deque(starts)
        while queue and len(came) < _MAX_STATES and self._budget > 0:
            self._budget -= 1
            state = queue.popleft()
            for following in self._steps(state, search):
                if following[0] == target:
                    return self._witness(state, came, target), True
                event = self._nodes[following[0]].event
                if following in came or (event is not None and search.blocks(event)):
                    continue
                came[following] = state
                queue.append(following)
        return None, not queue

    def _witness(self, last: _State, came: dict[_State, _State | None], target: int) -> tuple[Event, ...]:
        nodes = [target]
        state: _State | None = last
        while state is not None:
            nodes.append(state[0])
            state = came[state]
        found = [self._nodes[node].event for node in reversed(nodes)]
        return tuple(event for event in found if event is not None)

    def _steps(self, state: _State, search: _Search) -> Iterator[_State]:
        node, known, value = state
        for edge in self._nodes[node].edges:
            if edge.back_to is not None and edge.back_to in search.barred:
                continue
            taken = self._take(edge, known, value, search.mask)
            if taken is not None:
                yield (edge.target, *self._arrive(edge.target, *taken, search))

    def _take(self, edge: Edge, known: int, value: int, mask: int) -> tuple[int, int] | None:
        bit = self._bits.get(edge.atom.text, 0) & mask if edge.atom else 0
        if not bit:
            return known, value
        if known & bit:
            return (known, value) if bool(value & bit) is edge.value else None
        return known | bit, value | bit if edge.value else value

    def _arrive(self, node: int, known: int, value: int, search: _Search) -> tuple[int, int]:
        lost, learned, truths = self._effects[node]
        lost, learned = lost & search.mask, learned & search.mask
        if lost:
            known, value = known & ~lost, value & ~lost
            back = search.fixed[0] & lost  # what the question assumes is assumed of the new value as well
            known, value = known | back, value | (search.fixed[1] & back)
        if learned:
            known, value = known | learned, (value & ~learned) | (truths & learned)
        return known, value

    def _reached(self, search: _Search) -> tuple[_States, bool]:
        """All states that the entry leads to."""
        key = (search.mask, *search.fixed)
        if key not in self._reachable:
            seen: set[_State] = {(0, *search.fixed)}
            queue = deque(seen)
            while queue and len(seen) < _MAX_STATES and self._budget > 0:
                self._budget -= 1
                for state in self._steps(queue.popleft(), search):
                    if state not in seen:
                        seen.add(state)
                        queue.append(state)
            by_node: _States = {}
            for state in sorted(seen):
                by_node.setdefault(state[0], []).append(state)
            self._reachable[key] = by_node, not queue
        return self._reachable[key]

    def _relevant_bits(self, source: int, target: int, blocks: Callable[[Event], bool]) -> int:
        """The conditions to keep track of: all when they are few, else those around the events in question."""
        everything = (1 << len(self._bits)) - 1
        if len(self._bits) <= _FEW_ATOMS:
            return everything
        nodes = [self._nodes[source], self._nodes[target]]
        nodes += [node for node in self._nodes if node.event is not None and blocks(node.event)]
        texts = [text for node in nodes for text in sorted(node.guards)]
        return sum({self._bits.get(text, 0) for text in list(dict.fromkeys(texts))[:_FEW_ATOMS]})

    @cached_property
    def _reachable(self) -> dict[tuple[int, int, int], tuple[_States, bool]]:
        return {}

    def _common_loops(self, a: int, b: int) -> frozenset[int]:
        return frozenset(self._nodes[a].loops) & frozenset(self._nodes[b].loops)

    # Conditions as bits. Only those asked twice, or set and asked, can rule a path out.

    @cached_property
    def _bits(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for node in self._nodes:
            for text in {edge.atom.text for edge in node.edges if edge.atom}:
                counts[text] = counts.get(text, 0) + 1
        for node in self._nodes:
            for text, _ in node.known:
                if text in counts:
                    counts[text] += 1
        flags = [text for text in counts if _amp_flag(text) is not None]
        repeated = [text for text, count in counts.items() if count > 1]
        chosen = list(dict.fromkeys([*flags, *repeated]))[:_MAX_ATOMS]
        return {text: 1 << i for i, text in enumerate(chosen)}

    @cached_property
    def _mentions(self) -> dict[str, frozenset[str]]:
        return {edge.atom.text: edge.atom.mentions for node in self._nodes for edge in node.edges if edge.atom}

    @cached_property
    def _effects(self) -> list[tuple[int, int, int]]:
        """For each node: atoms whose value is lost there, atoms that become known, and their values."""
        effects = []
        for node in self._nodes:
            lost = learned = truths = 0
            for text, bit in self._bits.items() if node.killed else ():
                if any(_depends(mention, name) for mention in self._mentions.get(text, ()) for name in node.killed):
                    lost |= bit
            for text, truth in node.known:
                bit = self._bits.get(text, 0)
                learned, truths = learned | bit, truths | (bit if truth else 0)
            effects.append((lost, learned, truths))
        return effects

    def _assumed(self, events: list[Event]) -> tuple[int, int]:
        known = value = 0
        texts: dict[str, bool] = {}
        if any(event.scaler for event in events):
            texts |= {text: on for text in self._bits if (on := _amp_flag(text)) is not None}
            texts |= {event.scaler: True for event in events if event.scaler}
        for text, truth in texts.items():
            bit = self._bits.get(text, 0)
            known, value = known | bit, value | (bit if truth else 0)
        return known, value


def _amp_flag(text: str) -> bool | None:
    """The value of a condition that switches mixed precision on; None for any other condition."""
    if _NO_AMP_FLAG.search(text):
        return False
    return True if _AMP_FLAG.search(text) and not _NOT_AMP_FLAG.search(text) else None


def _depends(mention: str, name: str) -> bool:
    """Whether a value of ``mention`` changes when ``name`` is assigned: ``self.x`` with ``self`` or ``self.x``."""
    return mention == name or mention.startswith((f"{name}.", f"{name}["))
