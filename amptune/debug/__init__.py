"""Training steps that are watched op by op: what overflows, underflows or turns NaN first, and what cures it."""
