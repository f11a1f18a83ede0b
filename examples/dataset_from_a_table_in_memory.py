"""Make a dataset from prompts that a program has in memory, and read it back with pandas.

    python examples/dataset_from_a_table_in_memory.py output/from-memory

Running it again makes only what is missing; with a longer table, only the new prompts.
"""

from __future__ import annotations

import sys

import fsspec
import pandas as pd

from flows.run import make_dataset
from rudalle_lib.config.run import RunConfig

# One row per prompt. `prompt` is the only required column; those that the run does not know, such
# as `theme`, are copied to the metadata of every image.
TABLE = pd.DataFrame(
    {
        "prompt": ["чёрный квадрат на белом фоне", "красный круг на сером фоне", ""],
        "images": [4, 4, 4],
        "theme": ["malevich", "malevich", "empty"],
    }
)


def main(output: str) -> None:
    """Make the dataset and print what is in it."""
    # A run reads its table from a URL; this one is of fsspec's file system in memory.
    url = "memory://tables/prompts.parquet"
    with fsspec.open(url, "wb") as stream:
        TABLE.to_parquet(stream)

    # Sections and keys as in a YAML file. Whatever is not given is as in the demo.
    config = RunConfig.model_validate(
        {
            "name": "from-memory",
            "output": output,
            "prompts": {"uri": url},
            "score": {"keep_best": 2},
        }
    )

    run = make_dataset(config)
    totals = run.manifest.totals
    print(f"{totals.kept} of {totals.images} images published")

    images = run.images()  # one row per published image, indexed by image_id
    print(images[["text", "score", "rank", "theme", "path"]].to_string())
    rejects = run.rejects()  # one row per prompt or image that was not published
    print(rejects[["stage", "reason", "detail"]].to_string())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "output/from-memory")
