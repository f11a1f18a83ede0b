"""The decode stage: the VQ-GAN turns image tokens into images."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from rudalle_lib.errors import SettingsError
from rudalle_lib.images.codecs import encode_for_stage, to_uint8
from rudalle_lib.images.file_threads import Pending, files_beside, submit_all
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.runtime.batching import FixedRows, OnProgress, map_batches, no_progress
from rudalle_lib.schema.records import PixelsRecord, TokensRecord


def decode_rows(
    model: VqGan,
    rows: Sequence[TokensRecord],
    batch_size: int,
    on_progress: OnProgress = no_progress,
) -> Pending[PixelsRecord]:
    """Decode candidates of any size into PNG files, which are encoded beside a GPU.

    An image with NaN or infinite pixels gets no file and becomes a reject.

    Args:
        model: the VQ-GAN that the decoder was trained with.
        rows: image tokens of the candidates.
        batch_size: images per batch; halved if memory runs out.
        on_progress: called with the numbers of decoded images and of all images.

    Returns:
        One row per candidate, in order.

    Raises:
        SettingsError: tokens that are not in the VQ-GAN's codebook.
        OutOfMemoryError: a single image does not fit into memory.
    """

    rows_of_batch = FixedRows(batch_size)
    files = files_beside(model.quant_conv.weight.device)

    def work(batch: Sequence[int]) -> list[Future[PixelsRecord]]:
        chosen = [rows[index] for index in batch]
        tokens = torch.tensor([row.tokens for row in chosen])  # [B, h * w]
        tokens = tokens.view(-1, chosen[0].rows, chosen[0].columns)
        images, finite = decode_tokens(model, tokens, rows_of_batch)
        return submit_all(files, _record, chosen, images, finite)

    sizes = [(row.rows, row.columns) for row in rows]
    return Pending(map_batches(sizes, batch_size, work, "decoding a single image", on_progress))


def _record(row: TokensRecord, image: Tensor, finite: bool) -> PixelsRecord:
    height, width = image.shape[1:]
    file = encode_for_stage(image) if finite else None
    return PixelsRecord(row.image_id, row.prompt_id, width, height, file)


@torch.inference_mode()
def decode_tokens(
    model: VqGan, tokens: Tensor, rows: FixedRows | None = None
) -> tuple[Tensor, list[bool]]:
    """Decode a batch of image tokens.

    Args:
        model: in evaluation mode; its device and dtype are used.
        tokens: int64 [B, h, w] on any device.
        rows: of a batch on GPUs; None is as many as there are images.

    Returns:
        uint8 [B, 3, H, W] on the CPU, RGB, and whether all pixels of each image are finite.

    Raises:
        SettingsError: tokens that are not in the codebook.
    """
    check_codes(tokens, model.config.n_embed)
    tokens = tokens.to(model.quant_conv.weight.device)
    floats = (rows or FixedRows(1)).apply(model.decode, tokens)  # [B, 3, H, W] in [-1, 1]
    finite: list[bool] = floats.isfinite().flatten(1).all(dim=1).tolist()
    return to_uint8(floats.nan_to_num(), -1.0, 1.0).cpu(), finite


def check_codes(tokens: Tensor, codes: int) -> None:
    """Check that all tokens are in a codebook.

    Args:
        tokens: integers of any shape.
        codes: size of the codebook.

    Raises:
        SettingsError: a token is not less than `codes`.
    """
    if tokens.numel() and int(tokens.max()) >= codes:
        raise SettingsError(
            f"decode.model does not belong to generate.model: expected tokens below {codes:,}, "
            f"found {int(tokens.max()):,}; choose the VQ-GAN that the decoder was trained with"
        )
