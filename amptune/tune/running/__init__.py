"""Runs one candidate, a stock recipe or a plan: its training step, its compilation, its time and memory."""
