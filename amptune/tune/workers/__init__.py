"""The process that measures: what it is asked, what it answers, and what happens when it dies."""
