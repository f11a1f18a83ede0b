"""The stages of a run, and what the result of each depends on.

Everything that the code asks about a stage is one entry of `STAGES`. To add a stage: an entry here,
a section of its name in the configuration, and a task (`tasks/shard_stages.py`).

Selection is not a stage. It only reads scores, so a changed threshold re-runs no network except the
upscaler and the segmenter, and those only on newly selected images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from rudalle_lib.config.base import Section
from rudalle_lib.config.run import RunConfig
from rudalle_lib.digests import digest_of
from rudalle_lib.registry import Kind, ModelEntry
from rudalle_lib.schema.records import ShardSpec
from rudalle_lib.weights import files

IMAGE_ENCODER = "image_encoder"
"""Key of the model that reads image prompts, among the weight digests by stage. It is only there if
it is another model than the VQ-GAN that decodes images."""

SECOND_SCORER = "second_scorer"
"""Key of the second scorer among the weight digests by stage, if there is one."""

IMAGE_PROMPT_SETTINGS = ("image_encoder", "crop_image_prompts")
"""Settings of `GenerateConfig` that matter only to shards with image prompts."""

ROUND_SETTINGS = ("until_accepted", "max_images")
"""Settings of `GenerateConfig` that matter only when images are drawn in rounds."""

ROUNDS = "rounds"
"""Part of the identity of "generate", if images are drawn in rounds: all that decides when a prompt
has enough of them."""

CONFIDENCE = "min_confidence"
"""Setting of `TranslateConfig` that decides which prompts are drawn. It is part of the identity of
"generate", as translations stay the same."""

NUMBER_SETTINGS = ("images", ROUNDS, CONFIDENCE)
"""What of the identity of "generate" decides how many images of a prompt are drawn, and not which.
"""

SELECTION_SETTINGS = (
    "min_score",
    "keep_best",
    "max_unsafe",
    "minimum",
    "maximum",
    "min_distance",
    "min_hash_distance",
)
"""Settings of `ScoreConfig` that select among scores and don't change any."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: also the name of its section in the configuration.
        per: what one row of its artifact is about: a prompt, a candidate image, or a kept image.
        upstream: the stages that its result is computed from. Which images are enlarged is decided
            by score, but an enlarged image depends on the decoded one alone.
        model_kind: the kind of model that it runs; None if it runs none.
        version: raised when new code gives another result. Users pay for that with a re-run.
        not_identity: settings of its section that never change its result.
        number_settings: what of its identity changes how many rows its result has, and no row.
        makes_images: its artifact holds images.
        is_on: whether a run has this stage. A stage that is off passes its input on.
        counts_when_off: its settings are part of the fingerprint even if it is off. A stage that is
            added later must not count then: datasets without it keep their fingerprints.
        more_identity: what else its result depends on.
    """

    name: str
    per: Literal["prompt", "candidate", "kept image"]
    upstream: tuple[str, ...] = ()
    model_kind: Kind | None = None
    version: int = 1
    not_identity: tuple[str, ...] = ()
    number_settings: tuple[str, ...] = ()
    makes_images: bool = False
    is_on: Callable[[RunConfig], bool] = lambda _: True
    counts_when_off: bool = True
    more_identity: Callable[[RunConfig, Mapping[str, str], ShardSpec], Mapping[str, Any]] = (
        lambda *_: {}
    )

    def section(self, config: RunConfig) -> Section:
        """Its section of a configuration."""
        section: Section = getattr(config, self.name)
        return section

    def identity(
        self, config: RunConfig, weights: Mapping[str, str], shard: ShardSpec
    ) -> dict[str, Any]:
        """The settings that its result for a shard depends on, as plain JSON values."""
        own = self.section(config).identity(exclude=self.not_identity)
        return own | dict(self.more_identity(config, weights, shard))


def _drawing_identity(
    config: RunConfig, weights: Mapping[str, str], shard: ShardSpec
) -> dict[str, Any]:
    drawing = {"seed": config.seed, "dtype": config.runtime.dtype}
    drawing |= _rounds_identity(config, weights, shard)
    drawing |= config.translate.identity(
        exclude=set(type(config.translate).model_fields) - {CONFIDENCE}
    )
    if not shard.image_prompts:
        return drawing
    settings = config.generate.model_dump(include=set(IMAGE_PROMPT_SETTINGS))
    return drawing | settings | {"weights": weights.get(IMAGE_ENCODER, weights.get("decode"))}


def _scoring_identity(
    config: RunConfig, weights: Mapping[str, str], shard: ShardSpec
) -> dict[str, Any]:
    return {SECOND_SCORER: weights[SECOND_SCORER]} if SECOND_SCORER in weights else {}


def _rounds_identity(
    config: RunConfig, weights: Mapping[str, str], shard: ShardSpec
) -> dict[str, Any]:
    """What decides how many images are drawn, if it is decided in rounds; otherwise nothing."""
    if config.generate.until_accepted is None:
        return {}
    judges = {
        name: [
            STAGES[name].version,
            STAGES[name].identity(config, weights, shard),
            weights.get(name),
        ]
        for name in ("decode", "score")
    }
    rule = config.generate.model_dump(include=set(ROUND_SETTINGS))
    return {ROUNDS: {**rule, **judges, "selection": _limits(config)}}


def _limits(config: RunConfig) -> dict[str, Any]:
    """The settings of `score` by which an image is kept, of those of its prompt."""
    others = set(type(config.score).model_fields) - set(SELECTION_SETTINGS)
    return config.score.identity(exclude=others)


def _selection_identity(config: RunConfig, *_: object) -> dict[str, Any]:
    rules = config.select.identified()
    chosen = {"rules": rules} if rules else {}
    return _limits(config) | chosen


_TABLE = (
    Stage("translate", "prompt", model_kind="translator", version=2, not_identity=(CONFIDENCE,)),
    Stage(
        "generate", "candidate", ("translate",), "decoder", version=2,
        not_identity=IMAGE_PROMPT_SETTINGS + ROUND_SETTINGS, number_settings=NUMBER_SETTINGS,
        more_identity=_drawing_identity,
    ),
    Stage("decode", "candidate", ("generate",), "vqgan", makes_images=True),
    Stage(
        "score", "candidate", ("decode",), "scorer", version=2, not_identity=SELECTION_SETTINGS,
        more_identity=_scoring_identity,
    ),
    Stage(
        "upscale", "kept image", ("decode",), "upscaler", makes_images=True,
        is_on=lambda config: config.upscale.model is not None,
    ),
    Stage(
        "cutout", "kept image", ("upscale",), "segmenter", makes_images=True,
        is_on=lambda config: config.cutout.transparent, counts_when_off=False,
    ),
    Stage(
        "publish", "kept image", ("score", "cutout"), version=2, more_identity=_selection_identity
    ),
)  # fmt: skip

STAGES: Mapping[str, Stage] = MappingProxyType({stage.name: stage for stage in _TABLE})
"""Every stage by name, in the order in which a shard passes through them."""

STAGE_NAMES = tuple(STAGES)


def active_stages(config: RunConfig) -> list[Stage]:
    """The stages that a run has, in order."""
    return [stage for stage in STAGES.values() if stage.is_on(config)]


def skipped_stages(config: RunConfig) -> set[str]:
    """The names of the stages that a run does without."""
    return {name for name, stage in STAGES.items() if not stage.is_on(config)}


def last_image_stage(names: Collection[str]) -> str:
    """The last of some stages whose artifact holds images."""
    return [name for name, stage in STAGES.items() if stage.makes_images and name in names][-1]


def stage_models(config: RunConfig) -> dict[str, ModelEntry]:
    """The registry entry of every stage that runs a model; reads no weights.

    Raises:
        ConfigError: an unknown name, or a model of another kind than the stage takes.
    """
    found: dict[str, ModelEntry] = {}
    for stage in active_stages(config):
        name = getattr(stage.section(config), "model", None)
        if stage.model_kind is not None and name is not None:
            found[stage.name] = config.weights.find(name, stage.model_kind)
    return found


def other_models(config: RunConfig) -> dict[str, ModelEntry]:
    """The registry entries of the models that a stage runs beside its own.

    Raises:
        ConfigError: as `stage_models`.
    """
    found: dict[str, ModelEntry] = {}
    encoder, second = config.generate.image_encoder, config.score.second_model
    if encoder not in (None, config.decode.model):
        found[IMAGE_ENCODER] = config.weights.find(str(encoder), "vqgan")
    if second is not None:
        found[SECOND_SCORER] = config.weights.find_second_scorer(second)
    return found


def models_without(config: RunConfig, without: Collection[str] = ()) -> dict[str, ModelEntry]:
    """The models of all stages but some, by stage, those that they run beside their own, too."""
    users = {IMAGE_ENCODER: "generate", SECOND_SCORER: "score"}
    models = stage_models(config) | other_models(config)
    return {name: one for name, one in models.items() if users.get(name, name) not in without}


def weight_digests(config: RunConfig, without: Collection[str] = ()) -> dict[str, str]:
    """Digest of the weights of every stage that runs a model; fetches missing files.

    Args:
        config: the run.
        without: stages whose weights are left out.

    Raises:
        ConfigError: as `stage_models`.
        WeightsError: files that are not available or are not what the registry says.
    """
    entries = models_without(config, without)
    return {
        stage: files.digest(entry, files.resolve_files(entry, config.weights))
        for stage, entry in entries.items()
    }


def fingerprints(
    config: RunConfig, weights: Mapping[str, str], shard: ShardSpec, chosen: str = ""
) -> dict[str, str]:
    """The fingerprint of every stage's result for one shard, in the order of the stages.

    Equal fingerprints mean equal results. Stages that are off have one, too.

    Args:
        config: the run.
        weights: digests as `weight_digests` returns them.
        shard: a planned shard.
        chosen: digest of what was decided about its images (`selection.choices`); matters only to
            "publish".
    """
    return _fingerprints(config, weights, shard, lambda _: (), chosen)


def row_fingerprints(
    config: RunConfig, weights: Mapping[str, str], shard: ShardSpec
) -> dict[str, str]:
    """Like `fingerprints`, but whatever the number of images of a prompt.

    A stage makes the rows of its result one by one. Results with equal row fingerprints have equal
    rows for the same images, so one of them can be continued by the other.
    """
    return _fingerprints(config, weights, original(shard), lambda stage: stage.number_settings)


def original(shard: ShardSpec) -> ShardSpec:
    """The shard as it was before rows of the table asked for other numbers of images."""
    return replace(shard, fingerprint=shard.origin or shard.fingerprint)


def _fingerprints(
    config: RunConfig,
    weights: Mapping[str, str],
    shard: ShardSpec,
    left_out: Callable[[Stage], Collection[str]],
    chosen: str = "",
) -> dict[str, str]:
    made: dict[str, str] = {}
    for stage in STAGES.values():
        counts = stage.counts_when_off or stage.is_on(config)
        identity = stage.identity(config, weights, shard) if counts else {}
        settings = {name: value for name, value in identity.items() if name not in left_out(stage)}
        if chosen and stage.name == "publish":
            settings["chosen"] = chosen
        upstream = [made[name] for name in stage.upstream] or shard.fingerprint
        digest = weights.get(stage.name)
        made[stage.name] = fingerprint(stage.name, stage.version, settings, upstream, digest)
    return made


def fingerprint(
    stage: str,
    version: int,
    settings: Mapping[str, Any],
    upstream: str | Iterable[str],
    weights: str | None = None,
) -> str:
    """32 hex characters that change whenever the result of a stage would change.

    Args:
        stage: its name.
        version: of its code (`Stage.version`).
        settings: everything that its result depends on (`Stage.identity`).
        upstream: the fingerprint of its input, or several in order.
        weights: digest of its weights, if it has any.
    """
    above = [upstream] if isinstance(upstream, str) else list(upstream)
    return digest_of(
        {
            "stage": stage,
            "version": version,
            "settings": dict(settings),
            "weights": weights,
            "upstream": above,
        }
    )
