"""A control flow graph: what it is made of. ``amptune.lint.cfg`` builds it."""

from __future__ import annotations

import dataclasses

from amptune.lint.events import Event
from amptune.lint.index import FunctionNode
from amptune.lint.words import Atom


@dataclasses.dataclass(frozen=True)
class Edge:
    """A step of control: taken when ``atom`` is ``value``; ``back_to`` is the loop it starts anew."""

    target: int
    atom: Atom | None = None
    value: bool = True
    back_to: int | None = None


@dataclasses.dataclass
class CfgNode:
    """One point of the flow.

    ``killed`` are names that get new values here, ``known`` are conditions that are true or false from here on,
    ``guards`` the conditions of the branches around it.
    """

    loops: tuple[int, ...] = ()
    event: Event | None = None
    killed: frozenset[str] = frozenset()
    known: tuple[tuple[str, bool], ...] = ()
    guards: frozenset[str] = frozenset()
    edges: list[Edge] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Cfg:
    """A control flow graph; node 0 is the entry, node 1 the normal exit.

    ``functions`` are the root and every function that was inlined. Where ``is_whole`` is False the graph grew too large
    and ends at calls that were not inlined, as nothing is known of what they do.
    """

    nodes: list[CfgNode]
    functions: set[FunctionNode | None]
    is_whole: bool = True
