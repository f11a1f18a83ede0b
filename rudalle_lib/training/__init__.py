"""Training and measurement of the demo models, and fine-tuning of decoders."""
