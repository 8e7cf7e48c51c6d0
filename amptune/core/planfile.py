"""Reading plan.json from disk."""

from __future__ import annotations

import json
from pathlib import Path

from amptune.core.plan import Plan
from amptune.errors import InputError, PlanError


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        InputError: it cannot be read.
        PlanError: it is not JSON, or not a plan.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path} is not JSON: {error}") from error
    return Plan.from_json(data, str(path))
