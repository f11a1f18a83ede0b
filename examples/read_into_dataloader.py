"""Read a finished dataset into a PyTorch DataLoader: images as floats, with their prompts.

    python examples/read_into_dataloader.py output/demo

The dataset may be on a local disk or on S3, and in any of the three formats.
"""

from __future__ import annotations

import sys

import torch
from torch.utils.data import DataLoader, Dataset

from rudalle_lib import read_images
from rudalle_lib.dataset.reader import PublishedImages
from rudalle_lib.images.codecs import decode_image
from rudalle_lib.storage.storage import Storage


class ImagesWithTexts(Dataset[tuple[torch.Tensor, str]]):
    """Pairs of an image, float32 [3, H, W] from 0 to 1, and its prompt."""

    def __init__(self, url: str, min_score: float = -1.0) -> None:
        """Read the metadata; images are read when they are needed."""
        table = read_images(url, columns=["path", "text", "score"])
        self.table = table[table["score"] >= min_score]
        self.url = url
        self.images: PublishedImages | None = None

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        """Read one image."""
        if self.images is None:  # each worker process opens the storage for itself
            self.images = PublishedImages(Storage(self.url))
        row = self.table.iloc[index]
        pixels = decode_image(self.images.read(row["path"], str(row.name)))
        return pixels.float() / 255, row["text"]


if __name__ == "__main__":
    url = sys.argv[1] if len(sys.argv) > 1 else "output/demo"
    dataset = ImagesWithTexts(url)
    # In the formats `webdataset` and `parquet` one file holds many images: keep shuffle off there,
    # or read the files with the libraries that they are made for.
    for images, texts in DataLoader(dataset, batch_size=4, shuffle=False):
        print(tuple(images.shape), f"mean {images.mean():.3f}", texts[0])
