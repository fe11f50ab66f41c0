"""The source of a distillation's images: selections, a generator, or both in shares."""

from collections.abc import Sequence
from typing import Any

from dfkd.config import DistillConfig
from dfkd.data.images.frame import Crops
from dfkd.formats.shards import Shards
from dfkd.generators.build import build, choose
from dfkd.generators.source import GeneratedSource
from dfkd.models.load import Model
from dfkd.system.components import Component
from dfkd.system.device import Place
from dfkd.system.errors import RequestError
from dfkd.system.portable import portable
from dfkd.training.selections import real_images, stored_images
from dfkd.training.sources import MixedSource, Source


def check(config: DistillConfig) -> Component | None:
    """Raise RequestError for what can be refused before anything is opened; return the generator of `--source`."""
    if not config.samples and config.source is None:
        raise RequestError("there is nothing to learn from: --samples names selections, --source a generator")
    generator = choose(config.source) if config.source is not None else None
    parts = len(config.samples) + (generator is not None)
    if config.weights and len(config.weights) != parts:
        raise RequestError(
            f"--weights has {len(config.weights)} numbers for {parts} of --samples and --source; give each one"
        )
    if config.epochs is not None and not config.samples:
        raise RequestError(f"--epochs {config.epochs} counts passes over --samples, and there are none; give --steps")
    if config.batches != "shuffled" and (config.weights or generator is not None):
        raise RequestError(
            f"--batches {config.batches} orders whole batches of --samples; leave out --weights and --source"
        )
    return generator


def content(config: DistillConfig, generator: Component | None, teacher: Model) -> dict[str, Any]:
    """Return what identifies the generator and the shares in the run's content; empty without both.

    The size of generated images is left out if the teacher itself states it. That of a selection is in its fingerprint.
    """
    source: dict[str, Any] = {"source": portable(generator.identity)} if generator is not None else {}
    if not config.samples and teacher.image_size != teacher.made_for:
        source["image_size"] = teacher.image_size
    return source | ({"weights": list(config.weights)} if config.weights else {})


def stored_share(config: DistillConfig) -> float:
    """Return the share of a batch that comes from `--samples` and not from the generator."""
    if config.source is None:
        return 1.0
    return 1 - config.weights[-1] / sum(config.weights) if config.weights else 0.5


def build_source(
    config: DistillConfig,
    selections: Sequence[Shards],
    generator: Component | None,
    teacher: Model,
    place: Place,
    crops: Crops | None,
) -> Source:
    """Build the source of a run: the selections as one, a generator, or both in the shares of `--weights`."""
    stored = stored_images(config, selections, place, crops)
    mixed = generator is not None or len(stored) > 1 or config.mixup or config.cutmix
    if mixed and any(source.follows for source in stored):
        raise RequestError(
            f"--batches {config.batches} needs the stored image that each view shows; leave out --mixup, --cutmix, "
            "--weights and --source"
        )
    if generator is None:
        return MixedSource(stored, config.weights) if len(stored) > 1 else stored[0]
    method = build(
        generator,
        teacher,
        place,
        batch=config.batch_size,
        seed=config.seed,
        taps=config.teacher_taps,
        real=real_images(selections, config.seed),
    )
    generated = GeneratedSource(method)
    share = stored_share(config)
    return MixedSource([*stored, generated], config.weights or (share, 1 - share)) if stored else generated
