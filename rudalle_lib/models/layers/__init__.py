"""Layers with faster forms for inference, and functions that put them into networks."""
