"""Sharing: a finished dataset is pushed to the Hugging Face hub, or copied to another folder."""
