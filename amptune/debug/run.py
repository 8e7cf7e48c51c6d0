"""From a target and options to a debug result."""

from __future__ import annotations

import warnings

from amptune.capture import TargetSpec, load_target
from amptune.debug.result import DebugResult
from amptune.debug.session import DebugOptions, Session
from amptune.tune.running.batches import load_batches
from amptune.tune.running.device import Device
from amptune.tune.running.training import Workbench


def debug(spec: TargetSpec, device: Device, options: DebugOptions) -> DebugResult:
    """Train the target for some steps and explain what overflows, underflows or turns NaN.

    Raises:
        TargetError: the target cannot be loaded.
        CaptureError: the model does not run in FP32, or yields too few batches.
    """
    target = load_target(spec)
    bench = Workbench.build(target, device, options.seed)
    batches = load_batches(target, options.steps, device.torch, held_back=0)
    with warnings.catch_warnings():
        # Failing is what this run is for: what the user's code warns of on the way has been said by then.
        warnings.simplefilter("ignore")
        result = Session(bench, batches, options).run()
    result.notes[:0] = list(dict.fromkeys(target.notes))
    return result
