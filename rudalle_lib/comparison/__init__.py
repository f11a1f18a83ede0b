"""Two finished datasets side by side: what differs, by how much, and whether that is too much."""
