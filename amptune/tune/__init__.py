"""amptune tune: the search for the fastest valid plan, by measurement.

``run`` is the command as one function, ``bench`` that of ``amptune bench``. The modules, in the order in which a search
goes:

- the process that owns the device, and what is asked of it: options, job, messages, process, childprocess, serve,
  preparing, worker, keeping, state, structure, batches, device
- training, and the reference in FP32: recipes, training, trained, reference, parting, quality, gate, gradients, noise,
  dropout, float8, lowparams, modelloss, roundedloss, ownautocast, compilation, recompiling
- what can be planned: foundspace, buildspace, space, regions, destinations, functioncalls, fixed, idlepins, parts
- what it costs and what it does to numbers: costs, costcache, sitetimes, kernels, followers, edges, losses, rounding,
  sensitivity
- the plans that are tried first: the package ``allocation``, and splits
- trials: search, trial, study, timing, outcomes, moments, timelimit, progress
- what they teach about the next one: the package ``learning``
- the finalists, measured again in turns: the package ``finalists``
- what is written: emit, emitted, explain, stockplan, result, pareto
- errors in words: kernelerrors, backwardplace
"""
