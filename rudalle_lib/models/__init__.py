"""The networks of the published models: torch only, with the published state-dict names."""
