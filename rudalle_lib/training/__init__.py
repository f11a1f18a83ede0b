"""Fine-tuning of networks on data of one's own."""
