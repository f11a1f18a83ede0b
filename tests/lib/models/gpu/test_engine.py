"""Whole batches drawn with captured steps equal those of torch: every token, on any device."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rudalle_lib.config.sections import GenerateConfig, WeightsConfig
from rudalle_lib.errors import RudalleError
from rudalle_lib.generation.draw import draw_candidates
from rudalle_lib.generation.sampling import (
    DRAW,
    GeneratedTokens,
    SamplingSettings,
    generate_tokens,
)
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.gpu import engine
from rudalle_lib.models.gpu.engine import StepDrawer, can_draw, obstacle, obstacle_on, release
from rudalle_lib.models.layers import triton_support
from rudalle_lib.schema.records import Overrides, Prompt
from rudalle_lib.weights.loading import load_decoder
from tests.support.tiny_stack import GRID, SIDE

SETTINGS = SamplingSettings(1.1, 9, 0.9)


def build(device: torch.device, **changes: Any) -> Dalle:
    """A decoder with all three kinds of layers."""
    torch.manual_seed(0)
    sizes = {
        "num_layers": 3, "hidden_size": 32, "num_heads": 2, "text_vocab_size": 30,
        "text_length": 6, "image_vocab_size": 16, "image_height": 2, "image_width": 3,
    }  # fmt: skip
    model = Dalle(DalleConfig(**{**sizes, **changes}))
    model.init_weights(0.2, 0.5, 0.3, 0.7)
    return model.eval().to(device)


def prompts() -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 24, (3, 6))


@pytest.fixture(autouse=True)
def captured_steps_run_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without a GPU the same steps run on the CPU, in Triton's interpreter, uncaptured."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(engine, "obstacle", lambda model: None)
    release()
    yield
    release()


@pytest.fixture
def drawers(monkeypatch: pytest.MonkeyPatch) -> list[StepDrawer]:
    """The drawers made in a test: proves that captured steps drew."""
    made: list[StepDrawer] = []
    begin = StepDrawer.__init__

    def count(self: StepDrawer, *args: Any) -> None:
        begin(self, *args)
        made.append(self)

    monkeypatch.setattr(StepDrawer, "__init__", count)
    return made


def both(
    monkeypatch: pytest.MonkeyPatch, model: Dalle, *args: Any, **kwargs: Any
) -> tuple[GeneratedTokens, GeneratedTokens]:
    """The images as captured steps draw them, and as torch does."""
    found = generate_tokens(model, *args, **kwargs)
    with monkeypatch.context() as torch_alone:
        torch_alone.setattr(engine, "obstacle", lambda model: "the test compares")
        return found, generate_tokens(model, *args, **kwargs)


def assert_equal(found: GeneratedTokens, expected: GeneratedTokens) -> None:
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.token_logprobs, expected.token_logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.ppl, expected.ppl, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("version", "sandwich_norm"), [("v2", True), ("v3", False)])
def test_all_tokens_are_those_of_torch(
    version: str,
    sandwich_norm: bool,
    device: torch.device,
    drawers: list[StepDrawer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(device, version=version, sandwich_norm=sandwich_norm)
    index, seeds = torch.tensor([0, 2, 0]), torch.tensor([5, 6, 1 << 60])
    found, expected = both(monkeypatch, model, prompts(), index, seeds, SETTINGS, 4)
    assert len(drawers) == 1
    assert_equal(found, expected)


def test_guidance_given_tokens_and_places(
    device: torch.device, drawers: list[StepDrawer], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = build(device), 3
    settings = [SamplingSettings(1.0, 0, 1.0, guidance) for guidance in (3.0, 1.0, 0.0)]
    given = torch.full((images, 6), DRAW)
    given[1, :4] = torch.tensor([3, 1, 15, 0])
    places = torch.arange(6).repeat(images, 1) * 7
    found, expected = both(
        monkeypatch, model, prompts(), torch.tensor([1, 0, 1]), torch.arange(images), settings, 3,
        empty_text=torch.tensor([2, 3, 0, 0, 0, 0]), given=given, places=places,
    )  # fmt: skip
    assert len(drawers) == 1
    assert_equal(found, expected)
    assert found.tokens[1, :4].tolist() == [3, 1, 15, 0]


@pytest.mark.slow
def test_prompts_of_every_kind_are_drawn_by_captured_steps(
    tiny_stack: Path,
    device: torch.device,
    drawers: list[StepDrawer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the generate stage draws them: guidance, a canvas of two windows, an image prompt."""
    weights = WeightsConfig(folder=str(tiny_stack), offline=True)
    decoder = load_decoder("demo-dalle", weights, device, packed=False)
    changes = {
        "plain": Overrides(),
        "guided": Overrides(guidance=3.0),
        "wide": Overrides(width=SIDE + SIDE // 2),
        "continued": Overrides(image_prompt="image.png", image_prompt_borders="up=1"),
    }
    asked = [Prompt(name, "круг", overrides=overrides) for name, overrides in changes.items()]
    given = torch.arange(GRID * GRID).view(GRID, GRID)

    def draw() -> list[tuple[str, list[int]]]:
        texts = dict.fromkeys(changes, "красный круг")
        rows, rejects = draw_candidates(
            decoder, asked, texts, GenerateConfig(images=1), 3, lambda *_: given, 4, batch_rows=5
        )
        assert not rejects
        return [(row.image_id, row.tokens) for row in rows]

    found = draw()
    assert len(drawers) == 2, "the second window of the canvas is drawn after the first"
    assert [len(tokens) for _, tokens in found] == [16, 16, 24, 16]
    assert found[3][1][:GRID] == given[0].tolist()
    monkeypatch.setattr(engine, "obstacle", lambda model: "the test compares")
    assert draw() == found and len(drawers) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_log_probabilities_in_lower_precisions_are_those_of_float32(
    dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tokens are given, so that a token that ties cannot change what follows."""
    model, images = build(device, version="v2"), torch.arange(2)
    torch.manual_seed(2)
    batch = prompts(), images, images, SETTINGS, 2
    given = torch.randint(0, 16, (2, 6))
    _, exact = both(monkeypatch, model, *batch, given=given)
    release()
    found = generate_tokens(model.to(dtype), *batch, given=given)
    error = (found.token_logprobs - exact.token_logprobs).abs().max()
    assert 0 < float(error) < 30 * torch.finfo(dtype).eps
    assert torch.equal(found.tokens, given)


def test_one_step_serves_all_batches_and_later_calls(
    device: torch.device, drawers: list[StepDrawer]
) -> None:
    model = build(device, image_height=1, num_layers=2)
    index = torch.tensor([0, 0, 2])
    alone = generate_tokens(model, prompts(), index, index, SETTINGS, 1, batch_rows=2)
    first = {id(drawer._captured) for drawer in drawers}
    drawers.clear()
    whole = generate_tokens(model, prompts(), index, index, SETTINGS, 2)  # the last batch is short
    again = generate_tokens(model, prompts(), index, index, SETTINGS, 2)
    assert len(first) == 1 and {id(drawer._captured) for drawer in drawers} == first
    assert len(drawers) == 4
    assert torch.equal(whole.tokens, alone.tokens) and torch.equal(again.tokens, whole.tokens)
    # The row count was the same, so nothing depends on the company: not even the last bit.
    assert torch.equal(whole.token_logprobs, alone.token_logprobs)


def test_a_step_grows_with_what_is_needed(device: torch.device) -> None:
    model = build(device, image_height=1, image_width=1, num_layers=2)
    text, many = prompts()[:1].repeat(20, 1), torch.arange(20)
    text[:, 0] = torch.arange(20)
    generate_tokens(model, text, many[:2], many[:2], SETTINGS, 20, batch_rows=20)
    assert engine._waiting[model].step.room == (20, 16, 16)
    generate_tokens(model, text, many, many, SETTINGS, 20, batch_rows=20)
    assert engine._waiting[model].step.room == (20, 32, 32)
    generate_tokens(model, text, many[:1], many[:1], SETTINGS, 20, batch_rows=20)
    assert engine._waiting[model].step.room == (20, 32, 32)


def test_steps_are_freed_with_their_network_and_on_request(device: torch.device) -> None:
    model, one = build(device, image_height=1, image_width=1), torch.zeros(1, dtype=torch.int64)
    generate_tokens(model, prompts(), one, one, SETTINGS, 1)
    step = weakref.ref(engine._waiting[model].step)
    release(torch.device("cuda", 99))
    assert step() is not None
    release(device if device.type == "cpu" else torch.device("cuda", 0))
    gc.collect()
    assert step() is None and not engine._waiting
    generate_tokens(model, prompts(), one, one, SETTINGS, 1)
    step, network = weakref.ref(engine._waiting[model].step), weakref.ref(model)
    del model
    gc.collect()
    assert network() is None and step() is None and not engine._waiting


def test_a_network_that_was_moved_is_captured_again(device: torch.device) -> None:
    """A graph reads weights where they were when it was captured."""
    model, seeds = build(device, image_height=1, num_layers=2), torch.arange(2)
    first = generate_tokens(model, prompts(), torch.tensor([0, 1]), seeds, SETTINGS, 2)
    before = engine._waiting[model]
    for weight in model.parameters():
        weight.data = weight.data.clone()
    again = generate_tokens(model, prompts(), torch.tensor([0, 1]), seeds, SETTINGS, 2)
    assert engine._waiting[model] is not before
    assert_equal(again, first)


def test_a_stopped_batch_leaves_no_step_behind(device: torch.device) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stopped

    model, one = build(device, num_layers=2), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(Stopped):
        generate_tokens(model, prompts(), one, one, SETTINGS, 1, stop)
    assert not engine._waiting


def test_networks_that_are_not_finite_are_reported(device: torch.device) -> None:
    model, one = build(device, num_layers=2), torch.zeros(1, dtype=torch.int64)
    torch.nn.init.constant_(model.transformer.final_layernorm.weight, torch.nan)
    with pytest.raises(RudalleError, match="not finite"):
        generate_tokens(model, prompts(), one, one, SETTINGS, 1)


def test_if_memory_runs_out_the_rows_are_halved(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, images = build(device, image_height=1, image_width=2, num_layers=2), torch.arange(5)
    expected = generate_tokens(model, prompts(), images % 3, images, SETTINGS, 3)
    release()
    rows: list[int] = []
    begin = StepDrawer.__init__

    def with_memory_for_three(self: StepDrawer, model: Dalle, request: Any, most: int) -> None:
        rows.append(most)
        if most > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        begin(self, model, request, most)

    monkeypatch.setattr(StepDrawer, "__init__", with_memory_for_three)
    found = generate_tokens(model, prompts(), images % 3, images, SETTINGS, 5)
    assert rows == [5, 3, 3]
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.token_logprobs, expected.token_logprobs)
    assert "continuing with 3" in caplog.text


def test_networks_on_a_cpu_are_drawn_by_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.undo()
    model = build(torch.device("cpu"))
    assert obstacle(model) == "it is not on a GPU"
    assert not can_draw(model) and not caplog.text  # there is nothing to tell


def test_why_a_network_on_a_gpu_is_drawn_by_torch_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    split = obstacle_on({first, second}, 128)
    assert split == "its layers are spread over several GPUs (runtime.split_decoder)"
    assert obstacle_on({first}, 512) == "its heads are wider than 256"
    monkeypatch.setenv("RUDALLE_GPU_ENGINE", "0")
    triton_support.obstacle.cache_clear()
    assert obstacle_on({first}, 128) == "RUDALLE_GPU_ENGINE is 0"
    triton_support.obstacle.cache_clear()
    engine._tell.cache_clear()
    engine._tell(split)
    engine._tell(split)
    assert caplog.text.count("spread over several GPUs") == 1
