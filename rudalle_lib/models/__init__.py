"""The networks of the published models, in plain torch, with the published state-dict names."""
