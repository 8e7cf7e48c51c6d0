"""The two kinds of rules: source rules read a parsed file, graph rules read a PrecisionGraph.

A rule is one class in one file of a rule pack. Its class docstring has fixed sections (What it does, Why is this bad,
Example, Use instead, Fix safety, References); its examples are data, from which tests, the rule index and
``amptune explain`` are generated. See ``amptune.testing`` for authors of rule packs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from amptune.core.finding import Finding, Severity

if TYPE_CHECKING:
    from amptune.core.graph_context import GraphContext
    from amptune.lint.settings_file import SettingsFile
    from amptune.lint.source import SourceFile


@dataclasses.dataclass(frozen=True)
class Example:
    """A named piece of source with its expectation on the line: ``# <- AMP101`` marks a line that must be flagged.

    Attributes:
        name: what it shows, in words; becomes a pytest id and a heading of the docs.
        source: the text. For a graph rule a whole tiny model file with ``make_model`` and ``make_batch``.
        fixed: the text after the rule's own fixes, when it has any (unsafe ones included).
        path: file name the text is linted as (``.py`` unless the rule reads notebooks or settings files).
        options: keyword arguments for the graph context of a graph rule, such as ``{"gpus": ("v100",)}``.
    """

    name: str
    source: str
    fixed: str | None = None
    path: str = "example.py"
    options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)


class Rule:
    """What source and graph rules share. Subclasses set the class attributes; a missing one is a load error.

    ``code`` never changes its meaning once published; ``name`` is the bad pattern, in words that read after "allow".
    """

    code: ClassVar[str]
    name: ClassVar[str]
    severity: ClassVar[Severity]
    INVALID: ClassVar[tuple[Example, ...]] = ()
    VALID: ClassVar[tuple[Example, ...]] = ()
    default_enabled: ClassVar[bool] = True

    @classmethod
    def has_fix(cls) -> bool:
        """Whether any example carries a fixed text: derived, so that the docs cannot lie."""
        return any(example.fixed is not None for example in cls.INVALID)


class SourceRule(Rule):
    """A rule over one source file.

    ``keywords``: byte strings of which at least one must occur in a file for the rule to be asked at all, and
    ``requires``: byte strings that must occur all; a tuple among them stands for any one of its items. ``may_concern``
    looks closer at files that have those. Together over the selected rules they are the prefilter that keeps most files
    unparsed.
    """

    keywords: ClassVar[tuple[bytes, ...]]
    requires: ClassVar[tuple[bytes | tuple[bytes, ...], ...]] = ()

    def may_concern(self, data: bytes) -> bool:
        """Whether a file with these bytes can have findings; asked when keywords are common. When in doubt, True."""
        return True

    def check(self, source: SourceFile) -> Iterable[Finding]:
        """Findings in one Python file or notebook. ``source`` has resolved names and event order; see its class."""
        return ()

    def check_settings(self, settings: SettingsFile) -> Iterable[Finding]:
        """Findings in one JSON or YAML file: DeepSpeed, accelerate, training arguments; see its class."""
        return ()


class GraphRule(Rule):
    """A rule over a captured model.

    ``by_calls``: whether it judges each call of a site for itself, as what asks for values does: it is given a context
    whose graph has the calls apart.
    ``tells_stops``: whether its findings name recipes under which the model raises, as ``stops`` in their evidence;
    such a rule is asked for the predictions' sake even where its findings are not wanted.
    """

    by_calls: ClassVar[bool] = False
    tells_stops: ClassVar[bool] = False

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """Findings for one model on the GPUs asked for. ``context`` has the graph, hardware and dtype tables."""
        raise NotImplementedError
