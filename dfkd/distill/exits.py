"""Accuracy of the heads that losses put after earlier stages of the student."""

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dfkd.distill.prepare import Distillation
from dfkd.models.classifier import Classifier
from dfkd.system.device import Place
from dfkd.training.evaluate import predicted_classes, show_all


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
