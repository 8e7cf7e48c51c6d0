"""What rules with common keywords look for in the bytes of a file, before it is parsed for them."""

from __future__ import annotations

import re

from amptune.lint.code_only import code_only

HALF = (b".half", b"import half", b"HalfTensor", b"fp16", b"float16")
"""For ``requires``: words of which a file that names float16 has one, and some others too (bfloat16)."""
SIXTEEN_BITS = (*HALF, b"bf16", b"autocast", b"mixed_precision", b"precision")
"""For ``requires``: the same for float16, bfloat16 and modes that compute in one of them."""
TRAINS = (b"autocast", b"fp16", b"bf16", b"precision")
"""For ``requires``: words of which a file that switches 16-bit training on has one."""

# What is to precede a word stands behind it as a lookbehind: so the search leaps from one word to the next.
_AUTOCAST = re.compile(rb"autocast(?<!\wautocast)")
_TRAINS = re.compile(rb"autocast(?<!\wautocast)|(?:fp16|bf16|mixed_precision|precision)\s*=")
_NUMPY = "(?<!math.{0})(?<!np.{0})(?<!numpy.{0})"
_LOGARITHM = re.compile("|".join(rf"\.{name}\({_NUMPY.format(name + '.')}" for name in ("log", "log1p")).encode())
_EXPONENTIAL = re.compile(rf"exp(?<!\wexp){_NUMPY.format('exp')}_?\(".encode())
_SIGMOID = re.compile(rb"igmoid(?<!logsigmoid)(?<!log_sigmoid)(?<!LogSigmoid)|expit")
_SOFTMAX = re.compile(rb"oftmax(?<!log_softmax)(?<!LogSoftmax)")
# No pattern may look at a byte more than a few hundred times, whatever the file: words are taken whole (``++``) and
# from their start, gaps are bounded.
_SUM_OF_EXP = re.compile(rb"exp_?\([\s\S]{0,200}?\.sum\(|sum\([^=]{0,150}?exp_?\(")
_NAMED = rb"(?<!\w)(\w++)\s{0,9}(?::[^=\n,()]{0,80})?=(?!=)\s{0,99}"
_NAMED_EXP = re.compile(_NAMED + rb"[^=]{0,150}?exp_?\(")
_TINY = rb"(?:(?<![\d.])[\d.]++[eE]-(?:0?[89]|[1-9]\d)|(?<!\d)0\.0000000\d|(?<![\w.])[\w.]++\([^()]{0,80}\)\.tiny)"
_LARGE = (
    rb"\d(?<![\w.]\d)(?:[\d_.]*[eE]\+?(?:[5-9]|[1-9]\d)|(?<=6)[5-9]\d{3}|(?<=[7-9])\d{4}|(?<=[1-9])\d{5}"
    rb"|\d{0,2}_\d{3}|(?<=2) ?\*\* ?(?:1[5-9]|[2-9]\d)|(?<=1)0\.?0? ?\*\* ?\d)"
)
_LARGE_LIMIT = rb"finfo\(torch\.float|float32\)\.m"
_ALIAS = re.compile(_NAMED + rb"(?:\w++\.)*+(\w++)")
_WORD = re.compile(rb"\w+")


class _NumberUse:
    """A kind of number, and the places where a rule looks for it: written there, or by a name that it is bound to.

    Args:
        number: the number.
        before, behind: what stands on one side of it where it is written in place.
        names: where names stand for it; each group of the pattern holds some.
    """

    def __init__(self, number: bytes, before: bytes, behind: bytes, names: bytes) -> None:
        self._number = re.compile(number)
        self._written = re.compile(b"(?:" + before + b")(?:" + number + b")|(?:" + number + b")(?:" + behind + b")")
        self._named = re.compile(_NAMED + rb"[-+(]{0,9}(?:[\w.]++\()?(?:" + number + b")")
        self._used = re.compile(names)

    def may_be_in(self, code: bytes) -> bool:
        """Whether the number may reach one of the places; names are followed over two further names."""
        if self._number.search(code) is None:
            return False
        if self._written.search(code) is not None:
            return True
        names = set(self._named.findall(code))
        for _ in range(2):
            names |= {alias for alias, name in _ALIAS.findall(code) if name in names}
        used = {word for found in self._used.findall(code) for part in found for word in _WORD.findall(part)}
        return not names.isdisjoint(used)


_PATH = rb"(?:\w++\.)*+(\w++)"
_BOUNDS = rb"(?:clamp|clip|max)\w{0,9}\("
_TINY_GUARD = _NumberUse(
    _TINY,
    before=rb"\+\s{0,99}|" + _BOUNDS + rb"[\s\S]{0,150}?",
    behind=rb"\s{0,99}\+",
    names=rb"\+\s{0,99}" + _PATH + rb"|(?<!\w)(\w++)\s{0,99}(?=\+)|" + _BOUNDS + rb"([\s\S]{0,150})",
)
_FILLS = rb"(?:fill_?|full|full_like|pad|where)\("
_FACTOR = rb"\*\s{0,99}[-+(]{0,9}(?:[\w.]++\()?"
_ITEM = rb"\]\s{0,9}=\s{0,9}[-+(]{0,9}(?:[\w.]++\()?"
_LARGE_MASK = _NumberUse(
    _LARGE + b"|" + _LARGE_LIMIT,
    before=_FILLS + rb"[\s\S]{0,250}?|" + _FACTOR + b"|" + _ITEM,
    behind=rb"\){0,9}\s{0,99}\*(?!\*)",
    names=_FILLS + rb"([\s\S]{0,250})|" + _FACTOR + _PATH + rb"|(?<!\w)(\w++)\){0,9}\s{0,99}(?=\*)|" + _ITEM + _PATH,
)
_LARGE_NUMBER = re.compile(_LARGE)


def mentions_half(data: bytes) -> bool:
    """Whether float16 is named; ``rotate_half`` names nothing."""
    return any(word in data for word in HALF[:-1]) or data.count(b"float16") > data.count(b"bfloat16")


def mentions_sixteen_bits(data: bytes) -> bool:
    """Whether float16, bfloat16 or a mode that computes in one of them is named."""
    words = (*HALF, b"bf16", b"mixed_precision", b"precision=")
    return any(word in data for word in words) or (b"autocast" in data and _AUTOCAST.search(data) is not None)


def may_train_in_16_bits(data: bytes) -> bool:
    """Whether the file may switch mixed precision on: a precision is set, or autocast is entered."""
    return _TRAINS.search(code_only(data)) is not None


def calls_logarithm(data: bytes) -> bool:
    """Whether a method or function of a tensor library called log or log1p is called: not a logger, not logits."""
    return _LOGARITHM.search(code_only(data)) is not None


def has_large_number(data: bytes) -> bool:
    """Whether the code has a number that may pass 65504."""
    return _LARGE_NUMBER.search(code_only(data)) is not None


def masks_with_large_number(data: bytes) -> bool:
    """Whether a number that may pass 65504 may be written into a tensor, or multiplied with a mask."""
    return _LARGE_MASK.may_be_in(code_only(data))


def guards_with_tiny_number(data: bytes) -> bool:
    """Whether a number that float16 may round to 0 may be added to something, or bound it from below."""
    return _TINY_GUARD.may_be_in(code_only(data))


def calls_exponential(data: bytes) -> bool:
    """Whether exp of a tensor library may be called."""
    return _EXPONENTIAL.search(code_only(data)) is not None


def calls_exponential_or_sigmoid(data: bytes) -> bool:
    """Whether exp or a sigmoid may be called."""
    return calls_exponential(data) or _SIGMOID.search(code_only(data)) is not None


def divides_by_exponentials(data: bytes) -> bool:
    """Whether something may be divided by a sum of exponentials, or have its logarithm taken."""
    code = code_only(data)
    if _EXPONENTIAL.search(code) is None or (b"/" not in code and b".log(" not in code):
        return False
    if _SUM_OF_EXP.search(code) is not None:
        return True
    return any(name + b".sum(" in code or b"sum(" + name in code for name in set(_NAMED_EXP.findall(code)))


def calls_softmax(data: bytes) -> bool:
    """Whether a softmax may be called: not a log_softmax."""
    return _SOFTMAX.search(code_only(data)) is not None
