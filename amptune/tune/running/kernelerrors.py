"""What torch raises where a kernel is missing, or where formats clash, as a sentence that says what to change."""

from __future__ import annotations

import re

from amptune.capture.usercode import headline

_DTYPE = re.compile(r"(?:(?<![a-z])|(?<=got))(bfloat16|float16|float32|BFloat16|Half|Float|float)(?![a-z0-9]*\d)")
_LABELS = {"bfloat16": "BF16", "half": "FP16", "float16": "FP16", "float": "FP32", "float32": "FP32"}
_CLASH = re.compile(
    r"same (?:d|scalar )?types?\b|mixed dtype|dtypes? (?:match|must be)|expected scalar type|found dtype"
    r"|equal to src\.dtype|type\b.* should be the same|but got dtype|changed the type of value",
    re.IGNORECASE,
)
_MISSING = re.compile(
    r"not implemented for '(?:Half|BFloat16)'|could not create a primitive|unsupported dtype|low precision dtypes"
    r"|unsupported scalartype|status_not_supported|only supported for .*(?:float|double)|either float or double"
    r"|of float, double",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(r"value cannot be converted to type \S+ without overflow")
_OP = (
    re.compile(r'^"(\w+?)(?:_cpu|_cuda|_mps|_out)*" not implemented'),
    re.compile(r"descriptor for the (?:an? )?(.+?) primitive"),
    re.compile(r"^([a-z][\w.]*)(?:\([^)]*\))?:"),
    re.compile(r"^([a-z][\w.]*)\(\)"),
)


def is_of_formats(error: Exception) -> bool:
    """Whether formats clash in an error, or have no kernel."""
    text = headline(error)
    return isinstance(error, RuntimeError) and bool(_CLASH.search(text) or _MISSING.search(text))


def plain_reason(error: Exception, place: str) -> str:
    """One sentence about an error of a trial: what failed, at which line, and what to change where that is known.

    Errors of kernels are told by what they mean, in whatever words the library below has; all others in their own.

    Args:
        error: what was raised.
        place: ``path:line`` of the user's code; may be empty.
    """
    text = headline(error)
    at = f" ({place})" if place else ""
    formats = list(dict.fromkeys(_LABELS[name.lower()] for name in _DTYPE.findall(text)))
    if not isinstance(error, RuntimeError | TypeError):
        return f"{type(error).__name__}: {text}".rstrip(": ") + at
    if _TOO_LARGE.search(text):
        fits = formats[0] if formats else "the format"
        return (
            f"a constant of the model does not fit into {fits}{at}: take torch.finfo(x.dtype).min or .max in its place"
        )
    if "non_finite_check_and_unscale" in text and "Complex" in text:
        return "torch's loss scaling, which FP16 needs, takes no complex parameters: BF16 does without"
    if _CLASH.search(text):
        got = f", and got {' and '.join(formats)}" if len(formats) > 1 else ""
        op = _operation(text)
        return f"{op} takes tensors of one dtype{got}{at}: cast one to the other's there, as y.to(x.dtype) does"
    if _MISSING.search(text):
        low = [name for name in formats if name in ("FP16", "BF16")]
        one = low[0] if len(low) == 1 else "the formats of this recipe"
        return (
            f"{_operation(text)} has no kernel for {one} here{at}: compute it in FP32, with autocast off and x.float()"
        )
    return f"{type(error).__name__}: {text}".rstrip(": ") + at


def _operation(text: str) -> str:
    """The operation that an error's text names."""
    found = next((match[1] for pattern in _OP if (match := pattern.search(text))), "")
    return found.rstrip("_") or "an operation"
