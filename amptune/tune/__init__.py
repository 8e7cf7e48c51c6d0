"""amptune tune: the search for the fastest valid plan, by measurement.

``run`` is the command as one function, ``search`` its trials, ``bench`` that of ``amptune bench``. The
packages, each of which knows those before it alone:

- ``running``: one candidate, a recipe or a plan: its training step, compilation, time and memory
- ``choices``: what a plan may choose, and what is decided together
- ``prices``: what each choice costs by measurement
- ``quality``: whether a candidate trains as well as FP32
- ``workers``: the process that owns the device, and what it is asked
- ``study``: the trials as they are kept
- ``allocation``: the plans that are best by the costs alone, which are tried first
- ``learning``: what trials teach about the next one
- ``finalists``: the best plans and recipes, measured again in turns
- ``outputs``: what is written
"""
