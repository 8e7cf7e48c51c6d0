"""Manners of the child process: it ends with its parent, and leaves what torch says of itself unsaid."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import sys
import threading
import warnings

import torch


def end_with_parent() -> None:
    """End this process when its parent is gone, however that ended: it would hold the device, and answer nobody."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def start_children_as_usual() -> None:
    """Children of the user's code (a DataLoader's) start as in a process of his own, though this one was spawned:
    spawned ones could not import the classes of his file."""
    multiprocessing.set_start_method(None, force=True)


def quieten_torch() -> None:
    """Drop torch's warnings about its own code, the runtime's about a region that the model opens (which a note says),
    and torch's logs of what fails: a failed trial is told in one line.

    ``python -W`` and TORCH_LOGS bring them back.
    """
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.")
        warnings.filterwarnings("ignore", message="torch.autocast is active around a model")
    if "TORCH_LOGS" not in os.environ:
        torch._logging.set_logs(all=logging.CRITICAL)  # type: ignore[attr-defined]


def import_ahead() -> None:
    """Import what a compiled loss needs on a GPU, and Triton with it, while the parent captures the model: seconds."""
    if torch.cuda.is_available():
        importlib.import_module("torch._inductor.compile_fx")


def is_fatal(error: Exception) -> bool:
    """Whether the process can no longer be trusted: after a CUDA fault every later call fails."""
    return isinstance(error, torch.cuda.OutOfMemoryError | torch.AcceleratorError) or "CUDA error" in str(error)
