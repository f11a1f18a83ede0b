"""Drawing on a CUDA device: a step of the decoder as one CUDA graph of few kernels."""
