"""From a prompt table to a frozen plan of shards."""
