"""The trials as they are kept: journal, outcomes, moments of the host, time limits, progress."""
