"""The plans that the measured costs say are best, before any of them has run.

- costmodel: costs, casts, errors and vetoes of every point of a space; encoded: thousands of points at once
- allocate: the best assignment of choices to groups, by an exact cut (mincut) where there are two choices and an
  integer program (milp) where there are more, within limits (caps)
- front: the plans that are tried first
"""
