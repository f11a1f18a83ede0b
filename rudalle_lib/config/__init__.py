"""The configuration of a run: one frozen model, read from YAML."""
