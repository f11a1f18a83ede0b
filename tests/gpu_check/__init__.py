"""What a GPU must prove before anybody relies on it, in one command: `make gpu-check`."""
