"""What runs, in reading order: Prefect flows and the command line."""
