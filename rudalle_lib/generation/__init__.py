"""From prompts to image tokens."""
