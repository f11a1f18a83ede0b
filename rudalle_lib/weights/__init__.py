"""Weights: find the files of a model, verify them, convert them, and load networks."""
