"""The configuration of a fine-tuning: data in, better weights out.

Like `RunConfig` it is one frozen model, read from YAML, and the parameter of a Prefect flow. Each
section is passed to one part: `data` to the readers, `training` to the trainer, and so on.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from rudalle_lib.config.base import (
    NOT_IDENTITY,
    CpuCount,
    LocalFolder,
    Positive,
    Section,
    Url,
    within,
)
from rudalle_lib.config.document import Document
from rudalle_lib.config.inputs import ModelName, SourceConfig, WeightsConfig
from rudalle_lib.schema.ranges import SEED

Trained = Literal["decoder", "vqgan", "scorer"]
"""The kinds of networks that can be trained, by their kind in the registry."""

Part = Literal["attention", "mlp", "embeddings"]
"""Parts of a decoder that can be frozen."""

BASES: dict[Trained, str] = dict(decoder="demo-dalle", vqgan="demo-vqgan", scorer="demo-ruclip")
"""The network that each kind starts from by default."""


def _check_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda", device):
        raise ValueError(f"expected auto, cpu or cuda, found {device!r}")
    return device


class EncodingConfig(Section):
    """How images become what a network learns from."""

    shard_size: Positive = Field(
        default=1000, description="Images per shard. A shard is the unit of work."
    )
    fit: Literal["crop", "exact"] = Field(
        default="crop",
        description="crop: images of any size are resized and centre-cropped. exact: images of "
        "another size than that of the network are left out.",
    )
    long_captions: Literal["truncate", "reject"] = Field(
        default="truncate",
        description="What happens to captions that are longer than the network reads.",
    )
    held_out: float = Field(
        default=0.05,
        ge=0,
        le=0.5,
        description="Share of captions that are held out to measure the loss, by a hash of the "
        "caption; from 0 to 0.5.",
    )
    batch_size: Positive = Field(
        default=16, description="Images encoded at once.", json_schema_extra=NOT_IDENTITY
    )


class LoraConfig(Section):
    """Low-rank adaptation: small matrices learn beside frozen ones and are merged at the end."""

    rank: Positive = Field(default=16, description="Rank of the added matrices.")
    alpha: float = Field(
        default=32.0, gt=0, description="Scale of the added matrices; they count alpha / rank."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout of their inputs.")
    parts: tuple[Literal["attention", "mlp"], ...] = Field(
        default=("attention", "mlp"), min_length=1, description="Layers that get them."
    )


class VqganTrainingConfig(Section):
    """What a VQ-GAN learns, and what becomes of its codes."""

    keep_codes: bool = Field(
        default=True,
        description="Codes that images of the data use stay as they are, for a decoder that knows "
        "them. List a dataset of what that decoder can draw, too: codes that no image uses are "
        "free for something new.",
    )
    encoder_rate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="With keep_codes, the learning rate of the encoder as a share of "
        "`learning_rate`. Cells whose code the base was certain of keep it; new content gets more "
        "regular codes, which a decoder learns more easily. Needs `split_every: null`. 0: the "
        "encoder does not learn.",
    )
    split_every: Positive | None = Field(
        default=100,
        description="Steps between two looks for codes that no image uses. They take over what is "
        "reconstructed worst. The first look is before the first step. null leaves them unused.",
    )
    used_images: Positive = Field(
        default=1024, description="Images that are looked at to find the codes in use."
    )
    split_images: Positive = Field(
        default=128, description="Images that are looked at to find what is reconstructed worst."
    )
    absolute_weight: float = Field(
        default=1.0, ge=0, description="Weight of the mean absolute error of pixels."
    )
    squared_weight: float = Field(
        default=2.0, ge=0, description="Weight of the mean squared error of pixels."
    )
    edges_weight: float = Field(
        default=0.5,
        ge=0,
        description="Weight of the error of differences between neighbour pixels.",
    )
    commitment_weight: float = Field(
        default=0.05,
        ge=0,
        description="Weight of the cross-entropy between the logits and the chosen codes, which "
        "makes the encoder certain.",
    )
    noise: bool = Field(
        default=False,
        description="Choose codes by chance, in proportion to their softmax, as the published "
        "VQ-GAN was trained. Otherwise the most likely one is chosen, as when it is used.",
    )

    added_later = ("encoder_rate",)


class TrainingConfig(Section):
    """How a network learns."""

    method: Literal["all", "lora"] = Field(
        default="all",
        description="all: the network itself learns. lora: small matrices beside it, which takes "
        "a fraction of the memory.",
    )
    lora: LoraConfig = Field(default=LoraConfig(), description="Used with `method: lora`.")
    frozen: tuple[Part, ...] = Field(
        default=(), description="Parts of a decoder that do not learn: attention, mlp, embeddings."
    )
    steps: Positive = Field(default=500, description="Optimization steps.")
    batch_size: Positive = Field(
        default=8, description="Images per step, over all processes together."
    )
    images_at_once: Positive | None = Field(
        default=None,
        description="Images in memory at once, per process. A step adds up the gradients of as "
        "many parts as it needs. null is all images of a step.",
        json_schema_extra=NOT_IDENTITY,
    )
    learning_rate: float = Field(default=2e-5, gt=0, le=1, description="Peak learning rate.")
    warmup_steps: int = Field(
        default=20,
        ge=0,
        description="Steps over which the learning rate rises; then it falls along a cosine.",
    )
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="Weight decay of AdamW.")
    clip_norm: float = Field(
        default=1.0, gt=0, description="The norm to which a larger gradient is scaled down."
    )
    average: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of the moving average of the weights, which is exported instead of the "
        "last weights; such as 0.998. 0 is off.",
    )
    text_weight: float = Field(
        default=1.0, ge=0, description="Weight of a decoder's loss on text tokens."
    )
    image_weight: float = Field(
        default=7.0, gt=0, description="Weight of a decoder's loss on image tokens."
    )
    vqgan: VqganTrainingConfig = Field(
        default=VqganTrainingConfig(), description="Used with `trains: vqgan`."
    )
    empty_captions: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of images whose caption is left empty, which guidance needs.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16",
        description="Precision of the computation. Weights that learn are kept in float32, frozen "
        "ones in this precision.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Compute layers a second time instead of storing their results: a third more "
        "time, a fraction of the memory.",
        json_schema_extra=NOT_IDENTITY,
    )
    sharding: Literal["none", "fsdp"] = Field(
        default="none",
        description="none: every process has the whole network. fsdp: parameters, gradients and "
        "the state of the optimizer are spread over the processes.",
        json_schema_extra=NOT_IDENTITY,
    )
    checkpoint_seconds: float = Field(
        default=300.0,
        ge=0,
        description="Least time between two checkpoints. 0 is one after every step.",
        json_schema_extra=NOT_IDENTITY,
    )


class EvaluationConfig(Section):
    """What is measured during training."""

    every: Positive = Field(
        default=100, description="Steps between two measurements of the held-out loss."
    )
    images: Positive = Field(default=256, description="Held-out images that are measured, at most.")
    patience: Positive | None = Field(
        default=None,
        description="Stop after so many measurements without a lower held-out loss, and keep the "
        "weights of the lowest. null trains all steps.",
    )
    samples: int = Field(
        default=16,
        ge=0,
        le=256,
        description="Images on a sample sheet, drawn from held-out captions at each measurement; "
        "for a VQ-GAN its reconstructions.",
    )


class FineTuneRuntime(Section):
    """Where a fine-tuning works. None of it changes what is learnt, but for rounding."""

    devices: Annotated[str, AfterValidator(_check_device)] = Field(
        default="auto",
        description="auto: all GPUs with a process each, or the CPU. cpu. cuda: all GPUs.",
    )
    processes: Positive | None = Field(
        default=None, description="Processes that train together; null is one per GPU, else one."
    )
    threads: CpuCount | None = Field(
        default=None, description="CPU threads per process; null leaves the choice to PyTorch."
    )
    lease_seconds: float = Field(
        default=120.0,
        ge=1,
        le=30 * 24 * 3600,
        description="A fine-tuning renews its lease of the output. If it has not done so for this "
        "many seconds, another one may take the output over.",
    )


class FineTuneConfig(Document):
    """All settings of a fine-tuning."""

    elsewhere = dict.fromkeys(("decode", "generate", "prompts", "publish", "score"), "run")

    name: ModelName = Field(
        default="fine-tuned",
        description="Name of the new weights: small letters, digits, dots, dashes, underscores.",
    )
    seed: Annotated[int, within(SEED)] = Field(
        default=0, description="Seed of the order of the data and of all random numbers."
    )
    output: Url = Field(
        default="output/fine-tuned",
        description="Folder or URL for tokens, checkpoints, figures and the new weights. The same "
        "output again resumes.",
    )
    trains: Trained = Field(
        default="decoder",
        description="What learns: the decoder, the vqgan, or the scorer (ruCLIP).",
    )
    base: str | None = Field(
        default=None,
        description="Weights to start from, by registry name or by a name in `weights.models`; "
        "null is the demo's.",
    )
    vqgan: str = Field(
        default="demo-vqgan",
        description="VQ-GAN that turns images into the tokens of a decoder: the one that the "
        "decoder was trained with.",
    )
    data: tuple[SourceConfig, ...] = Field(
        default=(), description="The datasets to learn from, one or more."
    )
    weights: WeightsConfig = Field(default=WeightsConfig(), description="Where weights come from.")
    encoding: EncodingConfig = Field(
        default=EncodingConfig(), description="How images become what a network learns from."
    )
    training: TrainingConfig = Field(
        default=TrainingConfig(), description="How the network learns."
    )
    evaluation: EvaluationConfig = Field(
        default=EvaluationConfig(), description="What is measured."
    )
    runtime: FineTuneRuntime = Field(
        default=FineTuneRuntime(), description="Devices and processes."
    )
    export_folder: LocalFolder | None = Field(
        default=None,
        description="Folder for the new weights, in a subfolder of their name; null is `weights` "
        "in the output.",
    )

    @property
    def base_model(self) -> str:
        """The weights to start from."""
        return self.base or BASES[self.trains]

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if not self.data:
            raise ValueError(
                "data lists no dataset to learn from; expected for example "
                "data: [{uri: output/mine}]"
            )
        return self

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        training = self.training
        if self.trains != "decoder":
            for key, value in (
                ("method: lora", training.method == "lora"),
                ("frozen", training.frozen),
                ("sharding: fsdp", training.sharding == "fsdp"),
            ):
                if value:
                    raise ValueError(f"training.{key} is for decoders; trains is {self.trains}")
        if training.frozen and training.method == "lora":
            raise ValueError("with training.method: lora everything is frozen; leave frozen out")
        if set(training.frozen) == {"attention", "mlp", "embeddings"}:
            raise ValueError("training.frozen leaves nothing to learn")
        return self

    def encoding_identity(self) -> dict[str, Any]:
        """The settings that determine the encoded data, without the digests of the weights."""
        return {
            "trains": self.trains,
            "data": [source.identity() for source in self.data],
            "encoding": self.encoding.identity(),
        }
