"""The options of a run: their table, what is wrong with them, and what fills in the rest."""
