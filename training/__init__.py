"""One optimizer step, and everyone who takes part in it."""
