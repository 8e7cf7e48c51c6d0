"""amptune lint: source rules over Python files, without importing them. Never imports torch."""
