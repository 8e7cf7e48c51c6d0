"""What the trials so far teach, and which one is worth running next.

- what a step takes: stepmodel (how far the cost model is off), steptimes, host (what Python takes to queue a step),
  base (what is no site)
- whether a plan trains: validity
- the next trial: acquire (what may gain most), adapt, stockorder (recipes that wait), steering (brings these together)
"""
