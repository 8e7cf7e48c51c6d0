"""Every error that amptune raises for a user to read, with the exit code the command line gives it.

AmptuneError                 2  something the user can change; never shown with a traceback
|- UsageError                2  a flag or argument
|- ConfigError               2  [tool.amptune] or another file of settings
|- InputError                2  a file or folder that is missing, unreadable or not what it should be
|  |- TargetError            2  no model, two models, a constructor that needs arguments
|  `- PlanError              2  a plan that is malformed, of a newer schema, or for another model
|- MissingExtraError         2  a stage needs packages that are not installed
`- WorkError                 3  the input is fine but the work failed
   |- CaptureError           3  the model does not run or cannot be captured
   |- ApplyError             3  a plan that cannot be applied to this model
   `- TuneError              3  the FP32 reference itself fails, or no valid plan
"""

from __future__ import annotations

__all__ = [
    "AmptuneError",
    "ApplyError",
    "CaptureError",
    "ConfigError",
    "InputError",
    "MissingExtraError",
    "PlanError",
    "TargetError",
    "TuneError",
    "UsageError",
    "WorkError",
]


class AmptuneError(Exception):
    """A message for the user: what is wrong, where, and what to change."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, tuple[object, ...], dict[str, object]]:
        # Keyword arguments do not survive the default pickling, and errors cross from the worker process.
        return (type(self), (self.message,), {"hint": self.hint})

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(AmptuneError):
    """A flag or argument is wrong."""


class ConfigError(AmptuneError):
    """A settings file is wrong."""


class InputError(AmptuneError):
    """An input file is missing, unreadable or not what it should be."""


class TargetError(InputError):
    """The model to work on cannot be found or built from what was given."""


class PlanError(InputError):
    """A plan file is malformed, newer than this version, or belongs to another model."""


class MissingExtraError(AmptuneError):
    """A command needs packages of an extra that is not installed."""

    @classmethod
    def for_extra(cls, extra: str, missing: str) -> MissingExtraError:
        """The error for a missing module, naming the extra that brings it."""
        return cls(f"this command needs {missing}, which is not installed", hint=f"pip install 'amptune[{extra}]'")


class WorkError(AmptuneError):
    """The input is fine, but the work could not be done."""

    exit_code = 3


class CaptureError(WorkError):
    """The model does not run, or its graph cannot be captured.

    ``place`` is ``path:line`` of the user's code that raised; empty where none did.
    """

    place = ""


class ApplyError(WorkError):
    """A plan cannot be applied to this model."""


class TuneError(WorkError):
    """The search cannot start or found no valid plan."""
