"""Local web pages: a page to try prompts, and a Prefect server that shows a run."""
