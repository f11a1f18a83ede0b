"""The output folder: paths, manifests, the lease, and reading and writing the dataset in it."""
