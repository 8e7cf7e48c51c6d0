"""Relations between operands, which intervals do not see: a number and the largest of its row, a part and its whole.

``related`` asks by op. Each kind of relation is a module, on what they all stand on:

- where numbers meet: terms (what a sum adds up), alignment and axes (number by number, line by line)
- squares and norms: squares, parts, products, cosines, quadratics, distances, variances
- shares and logarithms: entropy, segments, masked, logarithms
- sums and orders along an axis: cumulative, order, rising
- choices and mixtures: conditions, blends, shared (one number in several terms), pairs, whole
"""
