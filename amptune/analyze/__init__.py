"""amptune analyze: graph rules and estimates over a PrecisionGraph."""
