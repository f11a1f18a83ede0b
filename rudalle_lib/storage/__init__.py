"""Files in a local folder or an object store: atomic writes, digests, clear errors."""
