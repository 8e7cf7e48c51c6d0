"""Nouns: what every stage speaks of. Standard library and networkx only."""
