"""Between which numbers the values at every site lie: interval analysis of a PrecisionGraph, without running it.

``Ranges`` goes through the graph from its inputs on. For each site it takes the bounds of the operands, asks
``transfer`` what the op makes of them one by one, asks ``relations`` what follows from how the operands belong
together (``x - max(x)`` is never above 0, whatever x is), keeps what both allow, and rounds that to the format that
the site delivers. Some relations are asked by rules alone: distances, logarithms, pairs, quadratics, whole.

To read in this order:

- intervals: a Range and its arithmetic; narrowing: what a cast leaves of one
- transfer: ranges of operands -> range of the result, by op; ``table`` first
- structure: where operands come from, and which of them are the same
- relations: what intervals do not see; ``related`` first
- ranges: the bounds of a graph, under assumptions on its inputs and weights
"""
