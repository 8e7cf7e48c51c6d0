"""The best trials and the best stock recipe, measured again in turns: which of them is faster, and by how much.

- a finalist: finalist, way (whole or in parts, as its model runs), finaltime (the seconds there are for this)
- the rounds: finals, ways, judging; speedup is what two of them say
- attribution: what of the gain is owed to formats, padding, layout and loss
"""
