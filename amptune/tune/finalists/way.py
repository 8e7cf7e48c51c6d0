"""The ways in which a finalist's model runs."""

from __future__ import annotations

import enum


class Way(enum.StrEnum):
    """How a finalist's model runs, and how what is handed over has to."""

    WHOLE = "whole"
    """Compiled as a whole."""
    PARTS = "parts"
    """Its blocks are compiled, each by itself, as by trials that compile."""
    EAGER = "eager"
    """Nothing of it is compiled."""
