"""Images as bytes and tensors: encoding, resizing, scores, selection, upscaling, cutouts."""
