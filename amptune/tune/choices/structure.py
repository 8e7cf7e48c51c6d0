"""Whether ``make_model()`` builds the same model each time: what is captured is measured in another process."""

from __future__ import annotations

from torch import nn

from amptune.capture import Target
from amptune.errors import CaptureError

_COMPILED = "_orig_mod."
_SHOWN = 3


def parameter_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters, also of a model under ``torch.compile``."""
    return frozenset(name.replace(_COMPILED, "") for name, _ in model.named_parameters())


def check_structure(target: Target, model: nn.Module, captured: frozenset[str] | None) -> None:
    """Check that ``model`` is what was captured; where it is not, one more is built to tell why.

    Raises:
        CaptureError: no two models of ``make_model()`` have the same parameters.
    """
    built = parameter_names(model)
    if captured is None or built == captured:
        return
    differing = built ^ parameter_names(target.make_model())
    if differing:
        shown = sorted(differing)
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        raise CaptureError(
            f"make_model() builds another model each time: only some have {', '.join(shown[:_SHOWN])}{more}",
            hint="let nothing that changes decide its structure: random numbers, the time, what lies in a folder",
        )
