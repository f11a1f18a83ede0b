"""Devices, precisions, memory and batches."""
