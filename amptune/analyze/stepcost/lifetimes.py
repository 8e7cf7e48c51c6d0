"""How long tensors of a step are in memory beyond what reads them: arguments of calls, gradients that are shared."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from amptune.core.graph import Site


@dataclasses.dataclass
class Gradient:
    """A gradient on its way back, in memory until the last of those that it is handed to has used it."""

    size: int
    holders: int = 1

    def shared(self) -> Gradient:
        """The same for one more holder."""
        self.holders += 1
        return self

    def let_go(self) -> int:
        """One holder less; returns the bytes that are free then."""
        self.holders -= 1
        return 0 if self.holders else self.size


@functools.lru_cache(maxsize=4096)
def _frames(module: str, is_module: bool) -> tuple[str, ...]:
    """Modules whose forward is under way at a site, from the outermost. Lists of blocks have none; layers by number are
    taken for a Sequential's, which has: where other ops come between them, that makes no difference."""
    names = module.split(".") if module else []
    depth = len(names) - is_module
    paths = [".".join(names[: end + 1]) for end in range(depth)]
    numbered = [end for end in range(depth - is_module) if names[end + 1 : end + 2] and names[end + 1].isdigit()]
    return tuple(path for end, path in enumerate(paths) if end not in numbered)


def entered_by(producer: Site, reader: Site) -> str:
    """The outermost module that the reader is in and the producer is not; empty for none."""
    outside = _frames(producer.module, producer.is_module)
    return next((frame for frame in _frames(reader.module, reader.is_module) if frame not in outside), "")


def frame_ends(order: Sequence[Site]) -> list[dict[str, int]]:
    """For each position, the last one of each forward that is under way there."""
    ends: list[dict[str, int]] = [{} for _ in order]
    for position in range(len(order) - 1, -1, -1):
        after = ends[position + 1] if position + 1 < len(order) else {}
        frames = _frames(order[position].module, order[position].is_module)
        ends[position] = {frame: after.get(frame, position) for frame in frames}
    return ends
