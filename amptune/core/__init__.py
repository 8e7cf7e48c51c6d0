"""What every stage speaks of. Standard library and networkx only.

- nouns: formats, choice, graph, structure, plan, planfields, planfile, runtimetable, recipes, scaler, tables,
  sensitivity, finding, rule
- rules: registry, graph_context, evidence, observed, reasons
- what ops are, and how source spells them: ops, operands, arguments, spellings, source_names, opcodes, pins, chains,
  op_support, autocast
- time on a GPU: hardware, efficiency, roofline, attending, closeness
- bounds of values: ``ranges`` asks for each op ``range_rules``, by its operands one by one (intervals, range_forms,
  activation_ranges, filled_ranges, layer_ranges, reduction_ranges, places, sampling), and ``relations``, by how they
  belong together (alignment, axes, terms, parts, products, segments, squares, quadratics, distances, cosines,
  variances, entropy, logarithms, cumulative, rising, order, blends, conditions, masked, pairs, shared, narrowing,
  whole)
- small things: files, nearest, paths, sizes
"""
