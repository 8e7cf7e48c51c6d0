"""Trains a patched model against the original on the user's own batches, and says whether they part."""
