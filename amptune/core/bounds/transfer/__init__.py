"""Transfer functions: the range of an op's result from the ranges of its operands, each taken by itself.

``table`` has one function for each op of the op table. They are made from ``forms`` that many ops share, or stand by
kind: activations, reductions, filled (tensors that numbers are put into), places (indices), sampling (pooling,
interpolation, spectra). ``layers`` bounds layers and matrix products by the norms of their weights.
"""
