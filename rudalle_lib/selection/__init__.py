"""Which images are kept: decisions by hand, and rules within prompts and across shards."""
