"""Drawing image tokens one at a time with an exact sparse cache, in torch or compiled kernels."""
