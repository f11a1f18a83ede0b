"""The data of a fine-tuning: datasets of any form, encoded once, and read at random."""
