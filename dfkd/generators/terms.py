"""Terms of the losses of generators: functions of plain tensors, all to be minimized."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy


def one_hot(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"] | None = None) -> Float[Tensor, ""]:
    """Cross-entropy of the teacher's answer with given classes, or with its own most probable class.

    Args:
        logits: The teacher's.
        labels: The wanted class of each image. None: the teacher's most probable class.

    Returns:
        The mean over images, in nats.
    """
    return cross_entropy(logits, logits.argmax(dim=1) if labels is None else labels)


def activation(features: Float[Tensor, "batch *shape"]) -> Float[Tensor, ""]:
    """Minus the mean absolute feature: real images excite a teacher more than noise does.

    Args:
        features: The teacher's, of any shape.

    Returns:
        The mean over all elements.
    """
    return -features.abs().mean(dtype=torch.float32 if features.dtype == torch.bfloat16 else None)


def class_entropy(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Minus the entropy of the batch's mean prediction, divided by log(classes).

        sum over classes of p log p / log(classes),   p = mean over images of softmax(logits)

    Args:
        logits: The teacher's.

    Returns:
        From -1, where the classes are even, to 0.

    Example:
        >>> class_entropy(torch.zeros(4, 2))
        tensor(-1.)
    """
    p = logits.softmax(dim=1).mean(dim=0)
    return (p * p.clamp_min(1e-12).log()).sum() / math.log(max(len(p), 2))


def logit_difference(
    teacher: Float[Tensor, "batch classes"], student: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Minus the mean absolute difference of the logits: lowest where the student errs most.

    Args:
        teacher: Logits.
        student: Logits.

    Returns:
        The mean over all elements.
    """
    return -(teacher - student).abs().mean()


def divergence(teacher: Float[Tensor, "batch classes"], student: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """KL(softmax(teacher) || softmax(student)), with gradients through both.

    Args:
        teacher: Logits.
        student: Logits.

    Returns:
        The mean over images, in nats.
    """
    return between(teacher.log_softmax(dim=1), student.log_softmax(dim=1)).mean()


def between(log_p: Float[Tensor, "batch classes"], log_q: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """KL(p || q) of each image, from logarithms. The gradient is finite even where a probability underflows to 0.

    Args:
        log_p: Logarithms of probabilities.
        log_q: Logarithms of probabilities.

    Returns:
        One number per image, in nats.
    """
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def adversarial(teacher: Float[Tensor, "batch classes"], student: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Minus the divergence of the student from the teacher, on images for which both choose one class.

    It is KL(p_teacher || p_student) at temperature 1. An image for which they choose different classes adds 0: the
    images are to make the student unsure, and there it already is. Gradients go through both answers.

    Args:
        teacher: Logits.
        student: Logits.

    Returns:
        The mean over images, in nats.
    """
    log_p, log_q = teacher.log_softmax(dim=1), student.log_softmax(dim=1)
    agree = teacher.argmax(dim=1) == student.argmax(dim=1)
    return -(agree * between(log_p, log_q)).mean()
