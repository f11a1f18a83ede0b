"""One thin Prefect task per part of a fine-tuning: encode, train, export."""
