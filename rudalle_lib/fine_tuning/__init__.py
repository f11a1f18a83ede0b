"""A fine-tuning from its configuration to weights: checks, processes, samples, export, record."""
