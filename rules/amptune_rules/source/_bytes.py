"""What rules with common keywords look for in the bytes of a file, before it is parsed for them."""

from __future__ import annotations

import functools
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
_TRAINS = re.compile(rb"(?:fp16|bf16|precision)\s*=")
_NUMPY = "(?<!math.{0})(?<!np.{0})(?<!numpy.{0})"
_LOGARITHM = re.compile("|".join(rf"\.{name}\({_NUMPY.format(name + '.')}" for name in ("log", "log1p")).encode())
_EXPONENTIAL = re.compile(rf"exp(?<!\wexp){_NUMPY.format('exp')}_?\(".encode())
_SIGMOID = re.compile(rb"igmoid(?<!logsigmoid)(?<!log_sigmoid)(?<!LogSigmoid)")
_SOFTMAX = re.compile(rb"oftmax(?<!log_softmax)(?<!LogSoftmax)")
_SUM_OF_EXP = re.compile(rb"exp_?\([\s\S]{0,200}?\.sum\(|sum\([^=]{0,150}?exp_?\(")
_POWER = re.compile(
    rb"\*\*(?=\s{0,9}2\b|\s?(?:[A-Za-z_][\w.]*+|\([\s\w.]*+\))(?![(\[]))(?<![(,]\*\*)(?<![(,]\s\*\*)(?<!\s\s\*\*)"
)
_SQUARED = (re.compile(rb"\.pow\("), re.compile(rb"\.square\("), _POWER)
_AVERAGE = re.compile(rb"(?:mean|sum)\(")
_MADE = re.compile(rb"(?:zeros|tensor|full)\w*\(")
_PLUS = re.compile(rb"\+|\.add_\(")
_TIMES = re.compile(rb"(?<!\*)\*(?!\*)")
_TINY_EXPONENTS = tuple(
    rb"%b-(?:(?<=\d%b-)|(?<=\d\.%b-))(?:0?[89]|[1-9]\d)" % (letter, letter, letter) for letter in (b"e", b"E")
)
_TINY = (*_TINY_EXPONENTS, rb"0\.0000000\d", rb"\)\.tiny\b")
_LARGE = (
    rb"\d(?<![\w.]\d)(?:[\d_.]*[eE]\+?(?:[5-9]|[1-9]\d)|(?<=6)[5-9]\d{3}|(?<=[7-9])\d{4}|(?<=[1-9])\d{5}"
    rb"|\d{0,2}_\d{3}|(?<=2) ?\*\* ?(?:1[5-9]|[2-9]\d)|(?<=1)0\.?0? ?\*\* ?\d)"
)
_REACH = 250
_MAX_NAMES = 50


class _Use:
    """Places of interest: where something is written, or a name that it is bound to.

    What stands around is looked at from there, and not further than ``_REACH`` bytes: a search for the names of all
    assignments of a file takes longer than parsing it.

    Args:
        things: patterns of the thing; one that begins with a fixed byte is found much faster than a choice of several.
        signs: what ``before`` holds one of, to be looked for first.
        before, behind: what stands on one side of it at such a place.
    """

    def __init__(self, things: tuple[bytes, ...], signs: tuple[bytes, ...], before: bytes, behind: bytes) -> None:
        self._things = [re.compile(thing) for thing in things]
        self._signs = signs
        self._before = re.compile(b"(?:" + before + rb")\Z")
        self._behind = re.compile(behind)

    def may_be_in(self, code: bytes) -> bool:
        """Whether the thing may reach such a place; names are followed to further names."""
        names: list[bytes] = []
        patterns = [*self._things]
        while patterns:
            for found in patterns.pop().finditer(code):
                head = code[max(0, found.start() - _REACH) : found.start()]
                if self._is_place(code, head, found.end()):
                    return True
                name = _bound_to_number(head)
                if name and name not in names and len(names) < _MAX_NAMES:
                    names.append(name)
                    patterns.append(re.compile(rb"%b(?<!\w%b)\b" % (name, name)))
        return False

    def _is_place(self, code: bytes, head: bytes, end: int) -> bool:
        if any(sign in head for sign in self._signs) and self._before.search(head) is not None:
            return True
        return self._behind.match(code, end) is not None


# An expression of numbers: no call but those that make one, and no new line outside of brackets.
# As an atomic group: a repeated group that is possessive itself matches wrongly in Python 3.11.0 to 3.11.3 (gh-101955).
_NUMBERS = re.compile(rb"(?>(?:[\[({,]\s*+|(?:float|int|tensor|finfo)\(|(?<!\w)\(|[^=\n(])*)\Z")
_TARGET = re.compile(rb"(?<!\w)(\w+)\s*(?::[^=\n,()]{0,80})?\Z")


def _bound_to_number(head: bytes) -> bytes:
    """The name that the expression at whose number a piece of code ends is bound to, if it is one of numbers alone."""
    place = head.rfind(b"=")
    if place < 0 or len(head) - place > 80 or _NUMBERS.match(head, place + 1) is None:
        return b""
    bound = _TARGET.search(head, max(0, place - 120), place)
    return bound[1] if bound is not None else b""


# The beginning of a call, to a place in its arguments: a new line where it is seen to go on.
_ARGUMENTS = rb"\(\s*+(?>(?:[\[({,=+*/-]\s*+|[^\n]|\n\s*+(?:[-+*/@.)\]]|(?:if|else|for|or|and)\b))*)"
_TINY_GUARD = _Use(
    _TINY, (b"+", b"clamp", b"clip", b"max"),
    rb"\+\s*(?:[\w.]+\([\w.]*|(?:\w+\.)*[\d.]*)|(?:clamp|clip|max)\w*" + _ARGUMENTS, rb"\)*\s*\+",
)  # fmt: skip
_FACTOR = rb"\s*[-+(]*(?:[\w.]+\([-+]?(?:\w+=)?)?(?:\w+\.)*[\d._]*"
_MASK = rb"(?:mask|\b1(?:\.0*)?\s*-)"
_LARGE_MASK = _Use(
    (_LARGE, rb"finfo\(torch\.float", rb"float32\)\.m"),
    (b"fill", b"full", b"pad(", b"where(", b"*", b"]"),
    rb"(?:fill_?|full|full_like|pad|where)" + _ARGUMENTS + rb"|(?:" + _MASK + rb"[\s\S]*(?<!\*)\*|\]\s*=)" + _FACTOR,
    rb"\)*\s*\*(?!\*)(?=[^=]{0,200}" + _MASK + rb")",
)
_ASSIGNED = re.compile(rb"(?<!\w)(\w+)\s*(?::[^=\n]{0,80})?=(?!=)[^=]*\Z")
_NEXT_WORD = re.compile(rb"=?\s{0,9}(?>(?:\w++\.)*)(\w++)")
_LAST_WORD = re.compile(rb"(?<!\w)(\w+)[)\]\s]*\Z")
_LARGE_NUMBER = re.compile(_LARGE)
_CASTS_UP = (b".float()", b".to(torch.float32)")
_PLAIN_NAME = re.compile(rb"(?<![\w.])(\w+)\Z")
_LAST_INDENT = re.compile(rb"(?<=\n)[ \t]*+(?=[^\n]*\Z)")
_FLOAT16 = re.compile(rb"float16(?<!bfloat16)")
_BFLOAT16 = re.compile(rb"bfloat16")
_COMPARED = re.compile(rb"(?:[=!]=|\bis|\bnot|\bin\s?[(\[{](?:torch\.\w+,\s?)*)\s?torch\.\Z")
_HALF_METHOD = re.compile(rb"\.half\b")
_HALF_TYPE = re.compile(rb"Float16(?<!BFloat16)")
_MAKES_HALF = (b"autocast", b"import half", b"HalfTensor", b'"fp16"', b"'fp16'", b'"half"', b"'half'")
_MAKES_BF16 = (b"BFloat16", b'"bf16"', b"'bf16'")
_MODULE = re.compile(rb"class\s+\w++\s*\([^)]{0,300}?(?:Module|Model|Layer|Block|Net|Loss|Attention|Criterion)\b")


def mentions_half(data: bytes) -> bool:
    """Whether float16 is named; ``rotate_half`` names nothing."""
    return any(word in data for word in HALF[:-1]) or data.count(b"float16") > data.count(b"bfloat16")


@functools.lru_cache(maxsize=2)  # as code_only
def makes_half(data: bytes) -> bool:
    """Whether the code may make a value float16: it is named other than in a comparison, or autocast is entered."""
    code = code_only(data)
    if any(word in code for word in _MAKES_HALF) or _is_named(_FLOAT16, code):
        return True
    return _HALF_METHOD.search(code) is not None or _HALF_TYPE.search(code) is not None


def makes_sixteen_bits(data: bytes) -> bool:
    """The same for bfloat16 as well."""
    code = code_only(data)
    return makes_half(data) or _is_named(_BFLOAT16, code) or any(word in code for word in _MAKES_BF16)


def _is_named(dtype: re.Pattern[bytes], code: bytes) -> bool:
    """Whether the dtype stands anywhere but behind a comparison."""
    places = (found.start() for found in dtype.finditer(code))
    return any(_COMPARED.search(code, max(0, place - 80), place) is None for place in places)


def has_module(data: bytes) -> bool:
    """Whether a class may be a module, by the names of its bases."""
    return _MODULE.search(code_only(data)) is not None


def mentions_sixteen_bits(data: bytes) -> bool:
    """Whether float16, bfloat16 or a mode that computes in one of them is named."""
    words = (*HALF, b"bf16", b"mixed_precision", b"precision=")
    return any(word in data for word in words) or (b"autocast" in data and _AUTOCAST.search(data) is not None)


def may_train_in_16_bits(data: bytes) -> bool:
    """Whether the file may switch mixed precision on: a precision is set, or autocast is entered."""
    return b"autocast" in data or _TRAINS.search(code_only(data)) is not None


def calls_logarithm(data: bytes) -> bool:
    """Whether a method or function of a tensor library called log or log1p is called: not a logger, not logits."""
    return _LOGARITHM.search(code_only(data)) is not None


def has_large_number(data: bytes) -> bool:
    """Whether the code has a number that may pass 65504."""
    return _LARGE_NUMBER.search(code_only(data)) is not None


def masks_with_large_number(data: bytes) -> bool:
    """Whether a number that may pass 65504 may be written into a tensor, or multiplied with a mask."""
    return has_large_number(data) and _LARGE_MASK.may_be_in(code_only(data))


def guards_with_tiny_number(data: bytes) -> bool:
    """Whether a number that float16 may round to 0 may be added to something, or bound it from below."""
    written = b".tiny" in data or b"0.0000000" in data or any(re.search(item, data) for item in _TINY_EXPONENTS)
    return written and _TINY_GUARD.may_be_in(code_only(data))


def calls_exponential(data: bytes) -> bool:
    """Whether exp of a tensor library may be called."""
    return _EXPONENTIAL.search(code_only(data)) is not None


def calls_exponential_or_sigmoid(data: bytes) -> bool:
    """Whether exp or a sigmoid may be called."""
    return calls_exponential(data) or b"expit" in data or _SIGMOID.search(code_only(data)) is not None


def divides_by_exponentials(data: bytes) -> bool:
    """Whether something may be divided by a sum of exponentials, or have its logarithm taken."""
    code = code_only(data)
    if _EXPONENTIAL.search(code) is None or (b"/" not in code and b".log(" not in code):
        return False
    return _SUM_OF_EXP.search(code) is not None or any(
        name + b".sum(" in code or b"sum(" + name in code for name in _names_before(code, _EXPONENTIAL)
    )


def squares(data: bytes) -> bool:
    """Whether something may be squared: ``x ** 2``, ``x.pow(2)``, ``x.square()``, a product with equal sides."""
    code = code_only(data)
    if b"pow(" in code or b"square(" in code or _POWER.search(code) is not None:
        return True
    return _has_product_of_same(code)


def squares_before_root(data: bytes) -> bool:
    """Whether a module may take a root of squares that are not made of a value that was cast to float32 just before."""
    code = code_only(data)
    if b"sqrt(" not in code or not has_module(data):
        return False
    for place in (found.start() for square in _SQUARED for found in square.finditer(code)):
        if _is_averaged(code, place) and not _is_widened(code, place):
            return True
    return _has_product_of_same(code)


def _is_averaged(code: bytes, place: int) -> bool:
    """Whether a mean or sum stands around the place, or follows the name that is assigned there."""
    head = code[max(0, place - _REACH) : place]
    if _AVERAGE.search(code, max(0, place - 150), place + _REACH) is not None:
        return True
    bound = _ASSIGNED.search(head)
    return (
        bound is not None
        and re.search(rb"%b(?<!\w%b)\b[^\n]{0,99}?(?:mean|sum)\(" % (bound[1], bound[1]), code) is not None
    )


def _is_widened(code: bytes, place: int) -> bool:
    """Whether the name before an operator or method is assigned something in float32 in a line above."""
    head = code[max(0, place - _REACH) : place].rstrip()
    if head.endswith(_CASTS_UP):
        return True
    name = _PLAIN_NAME.search(head)
    own = _LAST_INDENT.search(head)
    if name is None or own is None:
        return False
    lines = re.findall(rb"^([ \t]*)%b = ([^\n]*)$" % name[1], head, re.MULTILINE)
    return bool(lines) and lines[-1][0] == own[0] and lines[-1][1].endswith(_CASTS_UP) and b" if " not in lines[-1][1]


def accumulates(data: bytes) -> bool:
    """Whether something may be added to a name that a tensor of one number is bound to."""
    code = code_only(data)
    names = _names_before(code, _MADE)
    return bool(names) and any(_has_side(code, found, names) for found in _PLUS.finditer(code))


def _has_side(code: bytes, operator: re.Match[bytes], names: set[bytes]) -> bool:
    """Whether one of the names stands at either side of an operator."""
    left = _LAST_WORD.search(code, max(0, operator.start() - 60), operator.start())
    right = _NEXT_WORD.match(code, operator.end())
    return (left is not None and left[1] in names) or (right is not None and right[1] in names)


def _has_product_of_same(code: bytes) -> bool:
    return any(_ends_alike(code, found.start()) for found in _TIMES.finditer(code))


def _ends_alike(code: bytes, place: int) -> bool:
    """Whether the same is written on both sides of an operator, as far as its ends tell."""
    left = code[max(0, place - 150) : place].rstrip()
    last = _LAST_WORD.search(left, max(0, len(left) - 60))
    if last is None:
        return False
    right = code[place + 1 : place + 150].lstrip()
    end = right.find(last[0])
    while end >= 0:
        if left.endswith(right[: end + len(last[0])]):
            return True
        end = right.find(last[0], end + 1)
    return False


def _names_before(code: bytes, pattern: re.Pattern[bytes]) -> set[bytes]:
    """Names that are assigned something with a match of the pattern in it."""
    heads = (code[max(0, found.start() - _REACH) : found.start()] for found in pattern.finditer(code))
    return {bound[1] for head in heads if (bound := _ASSIGNED.search(head)) is not None}


def calls_softmax(data: bytes) -> bool:
    """Whether a softmax may be called: not a log_softmax."""
    return _SOFTMAX.search(code_only(data)) is not None
