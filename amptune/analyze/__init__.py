"""amptune analyze: graph rules and estimates over a PrecisionGraph.

- the command: runner, which has ``enrich`` tell sites what rules need of the captured nodes, runs the rules, and puts
  their findings together (confirm, grouping, causes); doctor, device
- what sites are told: dtypes, origins, constants, created, masks, folding, puts, axes, views, spacing, batchfacts,
  batchzeros, branches, assignments, closedrows, zerotimes
- what is assumed and seen of values: evidence, assume, initial, observe
- predicted time: estimate, stepkernels, sitekernels, and the kernels of a kind of op: attention, attended, multihead,
  convolutions, einsums, transforms, sequences, images, layouts, strides, fusion, moves, waiting
- predicted memory: memory, saved, lifetimes, gradients
- constants of the GPU at hand: calibrate, kernels, probes, probing, traffic
- tables and the page: sitetable, pagedata
"""
