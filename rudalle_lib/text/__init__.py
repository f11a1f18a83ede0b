"""Prompts as text: tokenizers, translation into Russian, blocked words."""
