"""The seed of an image: a function of what the image is, never of when or where it is drawn."""

import hashlib
import json


def image_seed(run_seed: int, prompt_id: str, replica: int) -> int:
    """The seed that all sampling noise of one image is keyed by.

    Args:
        run_seed: the seed of the run, any integer.
        prompt_id: the prompt's id.
        replica: which image of the prompt, counted from 0.

    Returns:
        63 bits of a BLAKE2b digest: 0 ... 2**63 - 1, so it fits an int64.
    """
    identity = json.dumps([run_seed, prompt_id, replica]).encode()
    digest = hashlib.blake2b(identity, digest_size=8, person=b"image-seed").digest()
    return int.from_bytes(digest, "big") >> 1
