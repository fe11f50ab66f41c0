"""Loss terms of generators: functions of plain tensors, all to be minimized."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy


def one_hot(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"] | None = None) -> Float[Tensor, ""]:
    """Return the cross-entropy of the teacher's logits with given classes, or with its own most probable class.

    Args:
        logits: The teacher's logits.
        labels: The wanted class of each image. None: the teacher's most probable class.

    Returns:
        The mean over images, in nats.
    """
    return cross_entropy(logits, logits.argmax(dim=1) if labels is None else labels)


def activation(features: Float[Tensor, "batch *shape"]) -> Float[Tensor, ""]:
    """Return minus the mean absolute feature, because real images activate a teacher more than noise does.

    Args:
        features: The teacher's features, of any shape.

    Returns:
        The negative mean over all elements.
    """
    return -features.abs().mean(dtype=torch.float32 if features.dtype == torch.bfloat16 else None)


def class_entropy(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Return minus the entropy of the batch's mean prediction, divided by log(classes).

        sum over classes of p log p / log(classes),   p = mean over images of softmax(logits)

    Args:
        logits: The teacher's logits.

    Returns:
        A value from -1, if all classes are equally frequent, to 0.

    Example:
        >>> class_entropy(torch.zeros(4, 2))
        tensor(-1.)
    """
    p = logits.softmax(dim=1).mean(dim=0)
    return (p * p.clamp_min(1e-12).log()).sum() / math.log(max(len(p), 2))


def logit_difference(
    teacher: Float[Tensor, "batch classes"], student: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Return minus the mean absolute difference of the logits. The minimum is where student and teacher differ most.

    Args:
        teacher: The teacher's logits.
        student: The student's logits.

    Returns:
        The negative mean over all elements.
    """
    return -(teacher - student).abs().mean()


def divergence(teacher: Float[Tensor, "batch classes"], student: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Return KL(softmax(teacher) || softmax(student)), with gradients through both.

    Args:
        teacher: The teacher's logits.
        student: The student's logits.

    Returns:
        The mean over images, in nats.
    """
    return between(teacher.log_softmax(dim=1), student.log_softmax(dim=1)).mean()


def between(log_p: Float[Tensor, "batch classes"], log_q: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """Return KL(p || q) of each image from logarithms, with a finite gradient even where a probability underflows to 0.

    Args:
        log_p: Logarithms of the probabilities p.
        log_q: Logarithms of the probabilities q.

    Returns:
        One number per image, in nats.
    """
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def adversarial(teacher: Float[Tensor, "batch classes"], student: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Return minus KL(teacher || student) at temperature 1, on the images for which both predict the same class.

    An image with different predictions adds 0, because the generator looks for images that the student gets wrong, and
    this image already is one. Gradients go through both inputs.

    Args:
        teacher: The teacher's logits.
        student: The student's logits.

    Returns:
        The negative mean over all images, in nats.
    """
    log_p, log_q = teacher.log_softmax(dim=1), student.log_softmax(dim=1)
    agree = teacher.argmax(dim=1) == student.argmax(dim=1)
    return -(agree * between(log_p, log_q)).mean()
