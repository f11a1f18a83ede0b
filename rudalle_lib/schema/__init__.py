"""The data types of a run: every row, column and JSON key that is written to disk."""
