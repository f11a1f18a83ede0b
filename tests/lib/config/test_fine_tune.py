"""The configuration of a fine-tuning: defaults, limits, and sentences for what does not fit."""

from __future__ import annotations

import pytest

from rudalle_lib.config.fine_tune import BASES, FineTuneConfig, Trained
from rudalle_lib.errors import ConfigError

DATA = "data: [{uri: output/mine}]"


@pytest.mark.parametrize("kind", BASES)
def test_each_kind_of_network_starts_from_the_demo(kind: Trained) -> None:
    assert FineTuneConfig.parse(f"{DATA}\ntrains: {kind}").base_model == BASES[kind]


def test_a_named_base_is_kept() -> None:
    assert FineTuneConfig.parse(f"{DATA}\nbase: malevich-v3").base_model == "malevich-v3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no dataset"),
        ("data: []", "lists no dataset"),
        ("data: [{}]", "data.0.uri is missing"),
        ("data: [{uri: a, captoin: b}]", "did you mean caption?"),
        (f"{DATA}\nname: Mine", "small letters"),
        (f"{DATA}\nname: ../mine", "small letters"),
        (f"{DATA}\ntrains: upscaler", "expected"),
        (f"{DATA}\ntrains: vqgan\ntraining: {{method: lora}}", "is for decoders"),
        (f"{DATA}\ntrains: scorer\ntraining: {{frozen: [mlp]}}", "is for decoders"),
        (f"{DATA}\ntrains: scorer\ntraining: {{sharding: fsdp}}", "is for decoders"),
        (f"{DATA}\ntraining: {{method: lora, frozen: [mlp]}}", "leave frozen out"),
        (f"{DATA}\ntraining: {{frozen: [attention, mlp, embeddings]}}", "nothing to learn"),
        (f"{DATA}\ntraining: {{learning_rate: 0}}", "training.learning_rate"),
        (f"{DATA}\nencoding: {{held_out: 0.6}}", "encoding.held_out"),
        (f"{DATA}\nruntime: {{devices: tpu}}", "expected auto, cpu or cuda"),
    ],
)
def test_what_does_not_fit_is_a_sentence(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r".") as caught:
        FineTuneConfig.parse(text)
    assert message in str(caught.value)


def test_settings_of_speed_leave_the_encoded_data_as_it_is() -> None:
    before = FineTuneConfig.parse(DATA)
    faster = FineTuneConfig.parse(f"{DATA}\nencoding: {{batch_size: 64}}")
    other = FineTuneConfig.parse(f"{DATA}\nencoding: {{fit: exact}}")
    assert faster.encoding_identity() == before.encoding_identity()
    assert other.encoding_identity() != before.encoding_identity()
