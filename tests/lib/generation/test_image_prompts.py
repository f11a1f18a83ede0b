"""Image prompts are fitted, encoded and reduced to their borders; bad ones are named in errors."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import aiohttp
import pytest
import torch
from aiohttp.client_reqrep import ConnectionKey
from PIL import Image

from rudalle_lib.errors import ImageError, StorageError, TransientError
from rudalle_lib.generation.image_prompts import border_mask, encode_image_prompt, fit, read_image
from rudalle_lib.generation.sampling import DRAW
from rudalle_lib.images.codecs import to_floats
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.schema.borders import Borders
from rudalle_lib.storage.errors import is_transient


@pytest.fixture(scope="module")
def vqgan() -> VqGan:
    torch.manual_seed(0)
    config = VqGanConfig(
        resolution=32, ch=8, ch_mult=(1, 1, 1, 2), num_res_blocks=1, attention_resolutions=(4,),
        z_channels=8, n_embed=32, embed_dim=8, norm_groups=4,
    )  # fmt: skip
    return VqGan(config).eval()


def image(height: int, width: int) -> torch.Tensor:
    torch.manual_seed(height + width)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def test_borders_cover_their_edges() -> None:
    mask = border_mask(Borders(up=1, right=2), 3, 5)
    assert mask.int().tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("borders", "words"),
    [
        (Borders(up=5), r"borders up=5 do not fit a canvas of 4 rows and 6 columns"),
        (Borders(right=7), "do not fit"),
        (Borders(up=2, down=2), "leave nothing of 4 x 6 tokens to draw"),
    ],
)
def test_borders_that_do_not_fit_are_named(borders: Borders, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        border_mask(borders, 4, 6)


def test_tokens_equal_those_of_the_whole_image(vqgan: VqGan) -> None:
    whole_image = image(32, 48)
    found = encode_image_prompt(vqgan, whole_image, Borders(left=2, down=1), 4, 6)
    whole = vqgan.encode(to_floats(whole_image[None], -1.0, 1.0))[0]
    mask = border_mask(Borders(left=2, down=1), 4, 6)
    assert torch.equal(found[mask], whole[mask])
    assert (found[~mask] == DRAW).all()


def test_cropping_first_hides_the_rest_of_the_image(vqgan: VqGan) -> None:
    one, other = image(32, 32), image(32, 32).clone()
    other[:, 8:] = 255 - other[:, 8:]
    borders = Borders(up=1)
    tokens = [encode_image_prompt(vqgan, image, borders, 4, 4, True) for image in (one, other)]
    assert torch.equal(*tokens)
    assert torch.equal(tokens[0][0], vqgan.encode(to_floats(one[None, :, :8], -1.0, 1.0))[0, 0])


def test_an_image_of_the_right_size_is_unchanged() -> None:
    assert torch.equal(fit(image(16, 24), 16, 24), image(16, 24))


@pytest.mark.parametrize(("height", "width"), [(100, 30), (30, 100), (7, 5), (1, 1)])
def test_an_image_of_any_size_is_cropped_around_its_centre(height: int, width: int) -> None:
    centred = torch.zeros(3, height, width, dtype=torch.uint8)
    centred[:, height // 2, width // 2] = 255
    found = fit(centred, 16, 24)
    assert found.shape == (3, 16, 24)
    bright = (found[0] == found[0].max()).nonzero().float().mean(0)
    assert (bright - torch.tensor([8.0, 12.0])).abs().max() <= 6


def test_an_image_is_read_from_a_path(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "a.png")
    assert read_image(str(tmp_path / "a.png"))[:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "it does not exist"),
        (b"", "a.png is not a readable PNG, JPEG, WEBP file"),
        (b"<svg onload=alert(1)>", "is not a readable"),
        (b"\x00" * (32 * 2**20 + 1), "at most 33,554,432 are allowed"),
    ],
)
def test_a_file_that_is_not_an_image_is_named(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises((ImageError, StorageError), match=words):
        read_image(str(tmp_path / "a.png"))


class FlakyServer(ThreadingHTTPServer):
    """A web server on loopback that returns an image, or the status that a test has set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FlakyRequest)
        self.status, self.cut = 200, False
        buffer = io.BytesIO()
        Image.effect_noise((64, 64), 50).save(buffer, "PNG")
        self.image = buffer.getvalue()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/a.png"


class FlakyRequest(BaseHTTPRequestHandler):
    server: FlakyServer

    def do_HEAD(self) -> None:
        found = self.server.status == 200
        body = self.server.image if found else b""
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2 if self.server.cut else None])

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        """Write no log."""


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    with FlakyServer() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_temporary_failure_of_a_server_is_told_apart_from_a_missing_image(
    server: FlakyServer,
) -> None:
    assert read_image(server.url).shape == (3, 64, 64)
    for status in (503, 500, 429):
        server.status = status
        with pytest.raises(TransientError, match=rf"read the image prompt .*a.png: .*{status}"):
            read_image(server.url)
    for status in (404, 403):
        server.status = status
        with pytest.raises(StorageError, match="Cannot read the image prompt") as raised:
            read_image(server.url)
        assert not isinstance(raised.value, TransientError)
    server.status, server.cut = 200, True
    with pytest.raises(TransientError):
        read_image(server.url)


def test_a_server_that_is_down_is_transient_and_an_unknown_host_is_not() -> None:
    with FlakyServer() as server:
        url = server.url
    with pytest.raises(TransientError, match="Cannot read the image prompt http://127.0.0.1"):
        read_image(url)
    nowhere = aiohttp.ClientConnectorDNSError(
        ConnectionKey("no.invalid", 443, True, True, None, None, None),
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    )
    assert not is_transient(nowhere)
    nowhere._os_error = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    assert is_transient(nowhere)


def test_a_decompression_bomb_is_rejected_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (5000, 4000)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="5000 x 4000 pixels; at most 16,777,216 in total"):
        read_image(str(tmp_path / "a.png"))
