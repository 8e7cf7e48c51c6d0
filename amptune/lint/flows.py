"""All flows of a file: which functions hold events, which of them others enter, and where flows start."""

from __future__ import annotations

import ast
from functools import cached_property

from amptune.lint.cfg import CfgBuilder
from amptune.lint.events import Classifier, Event
from amptune.lint.flow import Flow
from amptune.lint.index import FunctionNode, TreeIndex
from amptune.lint.kinds import Kinds
from amptune.lint.names import Names
from amptune.lint.scopes import Scopes
from amptune.lint.words import Words


class Flows:
    """Builds the flows of one file when a rule first asks."""

    def __init__(self, index: TreeIndex, scopes: Scopes, names: Names, kinds: Kinds) -> None:
        self._index = index
        self._scopes = scopes
        self._names = names
        self.classifier = Classifier(index, names, kinds, scopes.alias_identifiers)

    @cached_property
    def all(self) -> list[Flow]:
        """One flow for each function with events that no other function of the file enters; module level included."""
        builder = CfgBuilder(
            self._index, self._scopes, self._names, self.classifier, self._relevant, self._inlined
        )  # fmt: skip
        entered = set(self._inlined.values())
        flows: list[Flow] = []
        covered: set[FunctionNode | None] = set()
        functions = self._functions
        for function in [f for f in functions if f not in entered] + [f for f in functions if f in entered]:
            if function not in covered:
                flow = Flow(function, builder.build(function))
                covered |= flow.functions
                flows.append(flow)
        return flows

    @cached_property
    def events(self) -> list[Event]:
        """Every event of the file once, in source order, in the words of the function it is written in."""
        found = []
        for node in self._event_nodes:
            event = self.classifier.event(node, self._words_of(node))
            if event is not None:
                found.append(event)
        return found

    def _words_of(self, node: ast.expr) -> Words:
        return Words(self._scopes, self._names, self._index.function_of(node))

    @cached_property
    def _event_nodes(self) -> list[ast.expr]:
        candidates: list[ast.expr] = [*self._index.nodes(ast.Call), *self._index.nodes(ast.Attribute)]
        found = [node for node in candidates if self.classifier.may_be_event(node)]
        return sorted(found, key=lambda node: (node.lineno, node.col_offset))

    @cached_property
    def _functions(self) -> list[FunctionNode | None]:
        """Functions that hold an event or enter one that does; None for module level."""
        nodes = [*(event.node for event in self.events), *self._inlined]
        return list(dict.fromkeys(self._home(node) for node in nodes))

    def _home(self, node: ast.AST) -> FunctionNode | None:
        return self._index.function_of(node)

    @cached_property
    def _inlined(self) -> dict[ast.Call, FunctionNode]:
        """Calls that enter a function of the file which holds events, directly or through further calls."""
        targets = {
            call: function
            for call in self._index.nodes(ast.Call)
            if (function := self._names.definition(call.func)) is not None
        }
        holding = {self._home(event.node) for event in self.events}
        inlined: dict[ast.Call, FunctionNode] = {}
        while True:
            found = {call: function for call, function in targets.items() if function in holding}
            if len(found) == len(inlined):
                return inlined
            inlined = found
            holding |= {self._home(call) for call in found}

    @cached_property
    def _relevant(self) -> set[ast.AST]:
        relevant: set[ast.AST] = set()
        for node in [*(event.node for event in self.events), *self._inlined]:
            current: ast.AST | None = node
            while current is not None and current not in relevant:
                relevant.add(current)
                current = self._index.parent(current)
        return relevant
