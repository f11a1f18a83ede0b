"""The seed of an image: a function of its identity, not of when or where it is drawn."""

from __future__ import annotations

import hashlib
import json


def image_seed(run_seed: int, prompt_id: str, replica: int) -> int:
    """The seed that keys all sampling noise of one image.

    Args:
        run_seed: the seed of the run, any integer.
        prompt_id: the id of the prompt.
        replica: the number of the image among those of its prompt, counted from 0.

    Returns:
        63 bits of a BLAKE2b digest, from 0 to 2**63 - 1, which fit an int64.
    """
    identity = json.dumps([run_seed, prompt_id, replica]).encode()
    digest = hashlib.blake2b(identity, digest_size=8, person=b"image-seed").digest()
    return int.from_bytes(digest, "big") >> 1
