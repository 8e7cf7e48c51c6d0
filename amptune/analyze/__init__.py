"""amptune analyze: graph rules and estimates over a PrecisionGraph.

``runner`` is the command as one function: it has sites told what rules need of the captured nodes, runs the rules, and
puts their findings together. ``estimate`` predicts a step under each recipe on each GPU, ``sitetable`` and ``pagedata``
are its tables, ``doctor`` and ``device`` the machine at hand. The packages, each of which knows those before it alone:

- ``stepcost``: the kernels of each op, their time on any GPU, and the memory of a step
- ``sitefacts``: what sites are told: dtypes, constants, views, zeros of the batch, where values come from
- ``assumed``: what is taken of values, from the batch, the initial weights or a recorded step
- ``findings``: what becomes of findings: confirmed, put together, traced to their cause
- ``calibration``: the constants of the GPU at hand
"""
