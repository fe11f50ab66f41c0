"""What `result.json` holds of a student: its figures on labeled images, its costs and its name."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dfkd.config import DistillConfig
from dfkd.distill.prepare import Distillation
from dfkd.formats.manifest import Manifest
from dfkd.models.classifier import Classifier
from dfkd.select.request import short
from dfkd.system import names
from dfkd.system.device import Place
from dfkd.system.files import hash_of
from dfkd.system.memory import peak_memory_bytes
from dfkd.training.evaluate import Measures, measure, predicted_classes, show_all


def figures_of(prepared: Distillation) -> dict[str, Any]:
    """Measure the trained student on the labeled images; without a test, all figures are None."""
    measures = _measure(prepared)
    return {
        "top1": measures and measures.top1,
        "top5": measures and measures.top5,
        "agreement": measures and measures.agreement,
        "teacher_top1": measures and measures.teacher_top1,
        "test_images": measures and measures.images,
        "calibration_error": measures and measures.calibration_error,
        "per_class": measures and measures.per_class,
        "teacher_per_class": measures and measures.teacher_per_class,
        "test_fingerprint": prepared.test_fingerprint,
    }


def _measure(prepared: Distillation) -> Measures | None:
    """Measure the accuracy of the trained student in float32 on the labeled images; None without a test."""
    if prepared.test is None:
        return None
    place = Place(prepared.trainer.place.device, torch.float32)
    prepared.trainer.student.remove()
    student, teacher = (Classifier(model, place) for model in (prepared.student, prepared.teacher))
    return measure(student, prepared.test, 256, teacher)


@torch.no_grad()
def exit_accuracies(prepared: Distillation) -> list[float]:
    """Measure the top-1 accuracy of the losses' heads on the test images, from the shallowest head.

    The list is empty without test images or without such a loss.
    """
    data, objective, trained = prepared.test, prepared.trainer.objective, prepared.trainer.student
    if data is None or not objective.has_exits:
        return []
    place = Place(prepared.trainer.place.device, torch.float32)
    student, answers = Classifier(prepared.student, place, trained.taps), list[np.ndarray]()

    def take(pixels: UInt8[Tensor, "batch height width channels"]) -> None:
        answers.append(np.stack([predicted_classes(logits) for logits in objective.exits(student(pixels))]))

    show_all(data, 256, take)
    right = np.concatenate(answers, axis=1) == data.labels(prepared.student.classes)
    return [float(share) for share in right.mean(axis=1)]


def result_of(prepared: Distillation) -> dict[str, Any]:
    """Return the fields of the result besides the figures: what the student cost, and where it came from."""
    config, trainer = prepared.config, prepared.trainer
    images = trainer.plan.steps * trainer.plan.batch_size
    manifests = [shards.manifest for shards in prepared.selections]
    return {
        "steps": trainer.plan.steps,
        "images_seen": images,
        "teacher_forwards": trainer.teacher_forwards + _made(manifests, "teacher_forwards"),
        "generator_steps": trainer.source.generator_steps + _made(manifests, "generator_steps"),
        "seconds": round(trainer.seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(trainer.place.device),
        "source": "+".join(dict.fromkeys([*(m.source for m in manifests), *_methods(config)])),
        "selection_fingerprint": "+".join(manifest.fingerprint for manifest in manifests) or None,
        "seed": config.seed,
        "begins": prepared.begins,
        "student_parameters": prepared.student.parameter_count(),
        "name": config.name or _row_name(config, manifests),
        "fingerprint": hash_of(prepared.content),
    }


def _made(manifests: Sequence[Manifest], cost: str) -> int:
    """Sum a cost of generating the selections, such as `teacher_forwards`; 0 if none of them was generated."""
    return sum(manifest.cost.get(cost, 0) for manifest in manifests)


def _row_name(config: DistillConfig, manifests: Sequence[Manifest]) -> str:
    methods = [short(m.content.options.method) if m.source == "selection" else m.source for m in manifests]
    return f"{' + '.join([*methods, *_methods(config)])} | {' '.join(config.loss)}"


def _methods(config: DistillConfig) -> list[str]:
    """Return the name of the generator beside the selections, or an empty list."""
    return [] if config.source is None else [names.parse(config.source).name]
