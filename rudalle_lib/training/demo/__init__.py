"""Training of the demo models from scratch, and measurement of their quality."""
