"""Everything of rudalle-flows that is true without Prefect: records, storage and networks."""
