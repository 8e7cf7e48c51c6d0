"""Which op went wrong first, and why: the step in the format asked about, compared op by op with its FP32 twin."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Literal

from amptune.core.formats import Format
from amptune.core.ops import Family, op_named
from amptune.debug.magnitude import Magnitude, number
from amptune.debug.passes import Pass, twins
from amptune.debug.record import Op

Kind = Literal["overflow", "underflow", "nan", "constant", "raises", "not-precision"]
Twin = Callable[[Op], Op | None]

_DOMAIN = {"sqrt": 0.0, "rsqrt": 0.0, "log": 0.0, "log2": 0.0, "log10": 0.0, "pow": 0.0, "log1p": -1.0}
"""Ops whose result is NaN for inputs below this number."""
_MASKS = frozenset({"where", "masked_fill", "triu", "tril", "add", "mul", "sub"})
_FACTORS = frozenset({"mul", "div", "pow"})
"""Ops whose literal is held in FP32 while they compute: what matters is the result."""
_MASK = 1e3
"""Numbers below minus this may stand for -inf."""
_RISING = frozenset({"exp", "exp2", "expm1", "softplus", "sum", "cumsum", "mean", "add"})
"""Ops that make no +inf out of -inf."""
_FAR = 60
"""How many producers a search for a cause goes back."""


@dataclasses.dataclass(frozen=True)
class Cause:
    """Where a value was lost that an op further on fails for."""

    op: Op
    twin: Op | None
    words: str


@dataclasses.dataclass(frozen=True)
class Culprit:
    """The first op with finite inputs whose output is not finite, where its FP32 twin's is.

    Attributes:
        kind: overflow (a number over the format's largest), underflow (a number that the format rounds to zero), nan
            (neither), constant (a literal that the format does not hold), raises, or not-precision: FP32 fails too.
        op, twin: it, and the same op in FP32.
        words: one sentence on what happens there.
        cause: where the value was lost, if that is elsewhere.
        literal: name and value of the literal argument that is to blame.
    """

    kind: Kind
    op: Op
    twin: Op | None
    words: str
    cause: Cause | None = None
    literal: tuple[str, float] | None = None

    @property
    def to_blame(self) -> Op:
        """The op whose line is to change."""
        return self.cause.op if self.cause else self.op


def find_culprit(low: Pass, high: Pass, number_format: Format) -> Culprit | None:
    """What went wrong first in ``low``; None where everything that is not finite is not finite in FP32 either.

    Both passes must be detailed. -inf from masks is normal: the twin has it too, or a very negative number, and then
    the mask is the culprit only where something comes of it.
    """
    if high.error is None and not high.finite:
        return _not_precision(high)
    twin = twins(low, high)
    explanation = _Explanation(low, high, twin, number_format)
    first = _first_to_fail(low, twin)
    if first is not None and not masks(first, twin(first)):
        return explanation.of(first)
    if low.error is not None and low.error_op is not None:
        return _raised(low, number_format)
    worse = (op for op in low.ops if any(_worse(op.outputs, other.outputs if (other := twin(op)) else ())))
    first = first or next(worse, None)
    return explanation.of(first) if first is not None else None


def _first_to_fail(low: Pass, twin: Twin) -> Op | None:
    """The first op that fails on good inputs; a mask that became -inf where it spoils a result or is all there is."""
    mask: Op | None = None
    for op in low.ops:
        other = twin(op)
        if not any(_worse(op.outputs, other.outputs if other else ())):
            continue
        fed_badly = _fed_badly(op, other)
        if masks(op, other):
            mask = mask or (None if fed_badly else op)
        elif not fed_badly or (mask is not None and _of_its_own(op, other)):
            return op
        elif mask is not None:
            return mask
    return mask


def masks(op: Op, twin: Op | None) -> bool:
    """Whether very negative numbers became -inf and nothing worse, which a softmax treats alike."""
    bad = [m for m in op.outputs if not m.finite]
    floor = min((m.low for m in twin.outputs), default=0.0) if twin else 0.0
    only = bool(bad) and all(m.neginf and not m.posinf and not m.nan for m in bad)
    return op.phase == "forward" and only and floor <= -_MASK


def _of_its_own(op: Op, twin: Op | None) -> bool:
    """Whether an op makes +inf that cannot come from the -inf of a mask among its inputs."""
    fed = [m for m, other in zip(op.inputs, twin.inputs if twin else (), strict=False) if m.worse_than(other)]
    from_masks = all(m.neginf and not m.posinf and not m.nan for m in fed)
    scales_up = op.op in ("mul", "div") and all(value > 0 for value in op.numbers.values()) and bool(op.numbers)
    made = all(m.posinf and not m.nan for m in op.outputs if not m.finite)
    return from_masks and made and (op.op in _RISING or scales_up)


def _worse(found: tuple[Magnitude, ...], twin: tuple[Magnitude, ...]) -> Iterator[bool]:
    for index, magnitude in enumerate(found):
        yield magnitude.worse_than(twin[index] if index < len(twin) else None)


def _fed_badly(op: Op, twin: Op | None) -> bool:
    return any(_worse(op.inputs, twin.inputs if twin else ()))


def _not_precision(high: Pass) -> Culprit:
    """The first op that makes something non-finite out of finite numbers in FP32, masks left out."""
    bad = [op for op in high.ops if any(not m.finite for m in op.outputs) and not _is_mask(op)]
    op = next((op for op in bad if all(m.finite for m in op.inputs)), None) or next(iter(bad), None)
    if op is None:
        return Culprit("not-precision", high.ops[-1], None, "the loss is not finite in FP32 either")
    words = f"{op.op} gives {_outputs(op)} in FP32 too ({_inputs(op)}): this is not a matter of precision"
    return Culprit("not-precision", op, op, words)


def _is_mask(op: Op) -> bool:
    """Whether an op may well put -inf in place of numbers, as attention masks do."""
    if any(m.nan or m.posinf for m in op.outputs):
        return False
    return op.phase == "forward" and (op_named(op.op).family in (Family.MEMORY, Family.CREATE) or op.op in _MASKS)


def _raised(low: Pass, number_format: Format) -> Culprit:
    assert low.error is not None
    assert low.error_op is not None
    op, text = low.error_op, str(low.error).splitlines()[0]
    large = [(name, value) for name, value in op.numbers.items() if abs(value) > number_format.max]
    if "overflow" in text and large:
        name, value = large[0]
        words = f"{op.op} raises: its literal {value:g} does not fit, {number_format} ends at {_max(number_format)}"
        return Culprit("constant", op, None, words, literal=(name, value))
    return Culprit("raises", op, None, f"{op.op} raises in {number_format}, and not in FP32: {text}")


class _Explanation:
    """Puts into words why an op fails in a format."""

    def __init__(self, low: Pass, high: Pass, twin: Twin, number_format: Format) -> None:
        self.low = low
        self.high = high
        self.twin = twin
        self.format = number_format

    def of(self, op: Op) -> Culprit:
        """The culprit with its kind, cause and words."""
        twin = self.twin(op)
        steps = (self._literal, self._input_too_large, self._masked_row, self._too_large, self._lost, self._domain)
        for explain in steps:
            found = explain(op, twin)
            if found is not None:
                return found
        kind: Kind = "nan" if any(m.nan for m in op.outputs) else "overflow"
        why = op_named(op.op).why_sensitive or "an intermediate result leaves the format's range"
        return Culprit(kind, op, twin, f"{op.op} gives {_outputs(op)} ({_inputs(op)}; {self._in_fp32(twin)}): {why}")

    def _literal(self, op: Op, twin: Op | None) -> Culprit | None:
        if not self._is_low(op):
            return None
        for name, value in op.numbers.items():
            masks = value < 0 and not any(m.nan or m.posinf for m in op.outputs)
            if self.format.max < abs(value) < float("inf") and (masks or op.op not in _FACTORS):
                words = f"{op.op} gives {_outputs(op)}: its literal {value:g} does not fit, {self._ends()}"
                return Culprit("constant", op, twin, words, literal=(name, value))
            if name == "eps" and self._is_flushed(value):
                words = f"{op.op} gives {_outputs(op)}: its eps {value:g} is zero in {self.format}"
                return Culprit("underflow", op, twin, words, literal=(name, value))
        return None

    def _input_too_large(self, op: Op, twin: Op | None) -> Culprit | None:
        if op.phase == "backward" and op.op != "_to_copy":
            return None
        for magnitude in op.inputs:
            if magnitude.dtype in ("float32", "float64") and magnitude.amax > self.format.max and self._is_low(op):
                what = "a gradient" if op.phase == "backward" else "its input"
                words = f"{what} reaches {number(magnitude.amax)} and is cast to {self.format} here: {self._ends()}"
                return Culprit("overflow", op, twin, f"{op.op} gives {_outputs(op)}: {words}")
        return None

    def _too_large(self, op: Op, twin: Op | None) -> Culprit | None:
        top = max((m.amax for m in twin.outputs), default=0.0) if twin else 0.0
        if top <= self.format.max:
            return None
        words = f"{op.op} gives {_outputs(op)}: in FP32 it reaches {number(top)}, {self._ends()} ({_inputs(op)})"
        return Culprit("overflow", op, twin, words)

    def _masked_row(self, op: Op, twin: Op | None) -> Culprit | None:
        """A softmax over nothing but -inf, which a mask of finite numbers became."""
        if not any(m.nan for m in op.outputs) or not op.inputs or not op.inputs[0].neginf:
            return None
        if twin is None or not twin.inputs or twin.inputs[0].neginf:
            return None
        words = f"{op.op} gives NaN: a whole row is -inf, where FP32 has {number(twin.inputs[0].low)}"
        return Culprit("overflow", op, twin, words)

    def _lost(self, op: Op, twin: Op | None) -> Culprit | None:
        """An input has zeros that FP32 does not have."""
        for index in range(len(op.inputs)):
            if twin is None or not _excess_zeros(op, twin, index):
                continue
            chain = self._chain(op, index, _excess_zeros)
            words = f"{op.op} gives {_outputs(op)}: its input is zero where FP32 has {number(twin.inputs[index].amax)}"
            return self._with_chain("underflow", op, twin, words, chain)
        return None

    def _domain(self, op: Op, twin: Op | None) -> Culprit | None:
        """An input is outside of the op's domain, by rounding alone."""
        end = _DOMAIN.get(op.op)
        if end is None or twin is None or not op.inputs or not twin.inputs:
            return None
        if not op.inputs[0].low < end <= twin.inputs[0].low:
            return None

        def below(other: Op, its_twin: Op, index: int) -> bool:
            there = its_twin.inputs[index].low if index < len(its_twin.inputs) else -math.inf
            return other.inputs[index].low < end <= there

        chain = self._chain(op, 0, below)
        here, there = number(op.inputs[0].low), number(twin.inputs[0].low)
        words = f"{op.op} gives {_outputs(op)}: its input is {here}, in FP32 at least {there}"
        if not chain:
            return Culprit("nan", op, twin, words)
        why = f"{chain[-1].op} cancels: its operands differ by less than {self.format} resolves"
        return Culprit("nan", op, twin, words, Cause(chain[-1], self.twin(chain[-1]), why))

    def _chain(self, op: Op, index: int, lost: Callable[[Op, Op, int], bool]) -> list[Op]:
        """The ops that the loss came through, from the nearest to where it began."""
        chain: list[Op] = []
        producer = self._producer(op, index)
        while producer is not None and len(chain) < _FAR:
            chain.append(producer)
            twin = self.twin(producer)
            if twin is None:
                break
            further = [i for i in range(len(producer.inputs)) if lost(producer, twin, i)]
            producer = self._producer(producer, further[0]) if further else None
        return chain

    def _producer(self, op: Op, index: int) -> Op | None:
        made_by = op.producers[index] if index < len(op.producers) else None
        return self.low.ops[made_by] if made_by is not None else None

    def _with_chain(self, kind: Kind, op: Op, twin: Op, words: str, chain: list[Op]) -> Culprit:
        for link in (op, *chain):
            flushed = [(name, value) for name, value in link.numbers.items() if self._is_flushed(value)]
            if flushed and self._is_low(link):
                name, value = flushed[0]
                smallest = self.format.smallest_subnormal
                why = f"{value:g} is zero in {self.format}, whose smallest number is {smallest:.2g}"
                cause = Cause(link, self.twin(link), why) if link is not op else None
                return Culprit(kind, op, twin, f"{words}; {why}", cause, (name, value))
        if not chain:
            return Culprit(kind, op, twin, words)
        origin = chain[-1]
        other = self.twin(origin)
        size = number(max((m.amax for m in other.outputs), default=0.0)) if other else "more"
        cause = Cause(origin, other, f"{origin.op} underflows to zero: in FP32 it is at most {size}")
        return Culprit(kind, op, twin, words, cause)

    def _is_flushed(self, value: float) -> bool:
        smallest: float = self.format.smallest_subnormal
        return 0 < abs(value) <= smallest / 2

    def _is_low(self, op: Op) -> bool:
        return any(m.dtype == self.format.torch_name for m in op.outputs)

    def _ends(self) -> str:
        return f"{self.format} ends at {_max(self.format)}"

    def _in_fp32(self, twin: Op | None) -> str:
        return f"in FP32 {twin.outputs[0].words()}" if twin and twin.outputs else "finite in FP32"


def _excess_zeros(op: Op, twin: Op, index: int) -> bool:
    if index >= len(twin.inputs):
        return False
    return op.inputs[index].zeros > twin.inputs[index].zeros


def _outputs(op: Op) -> str:
    bad = [m for m in op.outputs if not m.finite]
    return bad[0].words() if bad else ", ".join(m.words() for m in op.outputs)


def _inputs(op: Op) -> str:
    if not op.inputs:
        return "no inputs"
    return "inputs " + " and ".join(f"{m.words()} ({_short(m.dtype)})" for m in op.inputs[:3])


def _short(dtype: str) -> str:
    try:
        return Format.parse(dtype).label
    except ValueError:
        return dtype


def _max(number_format: Format) -> str:
    return number(number_format.max)
