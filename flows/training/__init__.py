"""The flow that fine-tunes, and its view in terminals."""
