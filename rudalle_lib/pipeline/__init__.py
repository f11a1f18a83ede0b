"""The stages of a run: what each depends on, what is done, and what is left to do."""
