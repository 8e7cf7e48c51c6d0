"""Putting a plan in force on a live model, and checking that it is."""
