"""What every stage speaks of. Standard library and networkx only.

- nouns: formats, choice, graph, plan, planfields, planfile, runtimetable, recipes, scaler, tables, sensitivity,
  finding, rule
- rules: registry, graph_context, evidence, observed, reasons
- what ops are, and how source spells them: ops, operands, arguments, spellings, source_names, opcodes, pins, chains,
  op_support, autocast
- time on a GPU: hardware, efficiency, roofline, attending, closeness
- bounds of values: the package ``bounds``
- small things: files, nearest, paths, sizes
"""
