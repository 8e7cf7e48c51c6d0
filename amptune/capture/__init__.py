"""From a target to a torch.fx graph and a PrecisionGraph."""

from amptune.capture.capturing import Capture, capture
from amptune.capture.load import load_target
from amptune.capture.target import Target, TargetSpec

__all__ = ["Capture", "Target", "TargetSpec", "capture", "load_target"]
