"""The sparse cache is exact: it gives the logits of the masked forward at every position."""

import pytest
import torch

from rudalle_lib.models.cell_slots import plan_slots
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.kv_cache import CachedDecoder
from rudalle_lib.models.sparse_attention import LayerKind, TokenGrid, cell_mask
from rudalle_lib.models.text_sharing import Replicas

CPU = torch.device("cpu")
SIZES = [(5, 5), (4, 7), (12, 12), (13, 3), (14, 6), (1, 4), (4, 1)]


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", LayerKind)
def test_visible_slots_hold_exactly_the_visible_cells(
    kind: LayerKind, size: tuple[int, int], wrap: bool
) -> None:
    grid = TokenGrid(3, *size, wrap=wrap)
    plan, mask = plan_slots(kind, grid, CPU), cell_mask(kind, grid)
    content = torch.full((plan.size,), -1)
    for cell in range(grid.cells):
        content[plan.slot[cell]] = cell
        found = content[plan.visible[cell]].sort().values
        assert torch.equal(found, mask[cell].nonzero()[:, 0])
        block = plan.slot[cell] // plan.block
        in_block = content.view(-1, plan.block)[block, plan.tables[cell]]
        assert torch.equal(in_block.sort().values, found)


def test_slots_of_the_published_grid_are_few() -> None:
    sizes = {
        (kind, wrap): plan_slots(kind, TokenGrid(128, 32, 32, wrap), CPU).size
        for kind in LayerKind
        for wrap in (False, True)
    }
    assert sizes[LayerKind.ROW, False] == sizes[LayerKind.ROW, True] == 33
    assert sizes[LayerKind.COLUMN, False] == sizes[LayerKind.COLUMN, True] == 1024
    assert sizes[LayerKind.CONVOLUTION, False] == 6 * 32
    assert sizes[LayerKind.CONVOLUTION, True] == (5 + 6) * 32


def build(version: str, size: tuple[int, int], num_layers: int) -> Dalle:
    config = DalleConfig(num_layers, 12, 2, 20, 4, 9, *size, version)
    torch.manual_seed(0)
    model = Dalle(config, blockwise=False)
    model.init_weights(0.3, 0.5, 0.3, 0.7)
    return model.double().eval()


# The last of 5 and 7 layers is a convolution layer, of 2 and 6 a column layer.
@pytest.mark.parametrize("num_layers", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("version", ["v2", "v3"])
@torch.inference_mode()
def test_cached_logits_equal_the_masked_forward_at_every_position(
    version: str, size: tuple[int, int], num_layers: int
) -> None:
    model = build(version, size, num_layers)
    text = torch.randint(0, 16, (3, 4))
    prompt_of = torch.tensor([2, 0, 2, 1, 2])  # shared by 1, 1 and 3 images, in no order
    image = torch.randint(0, 9, (5, model.config.image_length))
    logits = model(torch.cat((text[prompt_of], image), dim=1))
    first = 4 if version == "v2" else 3  # the position that predicts the first image token
    expected = logits[:, first : first + model.config.image_length, 20:]

    decoder = CachedDecoder(model, text, prompt_of)
    found = [decoder.prefill()] + [decoder.decode_one_token(token) for token in image.T[:-1]]
    torch.testing.assert_close(torch.stack(found, dim=1), expected, atol=1e-9, rtol=0)


def test_replicas_find_their_prompt_and_their_image() -> None:
    prompt_of = torch.tensor([1, 0, 1, 1, 2])
    replicas = Replicas(prompt_of, 3)
    images = torch.arange(5.0).view(5, 1, 1)
    by_prompt = replicas.by_prompt(images)  # [P, heads, R, D]
    assert by_prompt[1, 0, :, 0].tolist() == [0, 2, 3]
    assert by_prompt[[0, 2], 0, 0, 0].tolist() == [1, 4]
    assert torch.equal(replicas.by_image(by_prompt), images)
