"""A plan in the terms of a trainer or library: one file a target, a registry, and what each has in common."""
