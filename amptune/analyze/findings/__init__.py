"""What becomes of the findings: confirmed by the recorded step, put together, and traced to their cause."""
