"""Image prompts: fitted, encoded and cut to their borders; bad pictures and borders are named."""

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

from rudalle_lib.borders import Borders
from rudalle_lib.errors import ImageError, StorageError, TransientError
from rudalle_lib.image_prompts import border_mask, encode_image_prompt, fit, read_picture
from rudalle_lib.images import to_floats
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.sampling import DRAW
from rudalle_lib.storage_errors import is_transient


@pytest.fixture(scope="module")
def vqgan() -> VqGan:
    torch.manual_seed(0)
    sizes = dict(ch=8, ch_mult=(1, 1, 1, 2), num_res_blocks=1, z_channels=8, embed_dim=8)
    config = VqGanConfig(
        resolution=32, attention_resolutions=(4,), n_embed=32, norm_groups=4, **sizes
    )
    return VqGan(config).eval()


def picture(height: int, width: int) -> torch.Tensor:
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


def test_tokens_are_those_of_the_whole_picture(vqgan: VqGan) -> None:
    own = picture(32, 48)
    found = encode_image_prompt(vqgan, own, Borders(left=2, down=1), 4, 6)
    whole = vqgan.encode(to_floats(own[None], -1.0, 1.0))[0]
    mask = border_mask(Borders(left=2, down=1), 4, 6)
    assert torch.equal(found[mask], whole[mask])
    assert (found[~mask] == DRAW).all()


def test_cropping_first_hides_the_rest_of_the_picture(vqgan: VqGan) -> None:
    own, other = picture(32, 32), picture(32, 32).clone()
    other[:, 8:] = 255 - other[:, 8:]
    borders = Borders(up=1)
    cut = [encode_image_prompt(vqgan, image, borders, 4, 4, True) for image in (own, other)]
    assert torch.equal(*cut)
    assert torch.equal(cut[0][0], vqgan.encode(to_floats(own[None, :, :8], -1.0, 1.0))[0, 0])


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    assert torch.equal(fit(picture(16, 24), 16, 24), picture(16, 24))


@pytest.mark.parametrize(("height", "width"), [(100, 30), (30, 100), (7, 5), (1, 1)])
def test_a_picture_of_any_size_is_cut_around_its_middle(height: int, width: int) -> None:
    own = torch.zeros(3, height, width, dtype=torch.uint8)
    own[:, height // 2, width // 2] = 255
    found = fit(own, 16, 24)
    assert found.shape == (3, 16, 24)
    bright = (found[0] == found[0].max()).nonzero().float().mean(0)
    assert (bright - torch.tensor([8.0, 12.0])).abs().max() <= 6


def test_a_picture_is_read_from_a_path(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "a.png")
    assert read_picture(str(tmp_path / "a.png"))[:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "it does not exist"),
        (b"", "a.png is not a readable PNG, JPEG, WEBP file"),
        (b"<svg onload=alert(1)>", "is not a readable"),
        (b"\x00" * (32 * 2**20 + 1), "at most 33,554,432 are allowed"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises((ImageError, StorageError), match=words):
        read_picture(str(tmp_path / "a.png"))


class Moody(ThreadingHTTPServer):
    """A web server on loopback that gives a picture, or an answer of the test's choice."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MoodyRequest)
        self.status, self.cut = 200, False
        buffer = io.BytesIO()
        Image.effect_noise((64, 64), 50).save(buffer, "PNG")
        self.picture = buffer.getvalue()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/a.png"


class MoodyRequest(BaseHTTPRequestHandler):
    server: Moody

    def do_HEAD(self) -> None:
        found = self.server.status == 200
        body = self.server.picture if found else b""
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2 if self.server.cut else None])

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Moody]:
    with Moody() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_server_in_a_bad_moment_is_told_from_one_without_the_picture(server: Moody) -> None:
    assert read_picture(server.url).shape == (3, 64, 64)
    for status in (503, 500, 429):
        server.status = status
        with pytest.raises(TransientError, match=rf"read the image prompt .*a.png: .*{status}"):
            read_picture(server.url)
    for status in (404, 403):
        server.status = status
        with pytest.raises(StorageError, match="Cannot read the image prompt") as raised:
            read_picture(server.url)
        assert not isinstance(raised.value, TransientError)
    server.status, server.cut = 200, True
    with pytest.raises(TransientError):
        read_picture(server.url)


def test_a_server_that_is_down_may_come_back_and_one_that_never_was_may_not() -> None:
    with Moody() as server:
        url = server.url
    with pytest.raises(TransientError, match="Cannot read the image prompt http://127.0.0.1"):
        read_picture(url)
    nowhere = aiohttp.ClientConnectorDNSError(
        ConnectionKey("no.invalid", 443, True, True, None, None, None),
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    )
    assert not is_transient(nowhere)
    nowhere._os_error = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    assert is_transient(nowhere)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    Image.new("1", (5000, 4000)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="5000 x 4000 pixels, at most 16,777,216"):
        read_picture(str(tmp_path / "a.png"))
