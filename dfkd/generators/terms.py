"""The terms that methods' losses are made of, each a function of plain tensors; all are to be minimised."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy


def one_hot(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"] | None = None) -> Float[Tensor, ""]:
    """Cross-entropy of the teacher's answer with the wanted classes, or with its own largest one; mean over images."""
    return cross_entropy(logits, logits.argmax(dim=1) if labels is None else labels)


def activation(features: Float[Tensor, "batch *shape"]) -> Float[Tensor, ""]:
    """Minus the mean absolute feature: real images excite a teacher more than noise does."""
    return -features.abs().mean(dtype=torch.float32 if features.dtype == torch.bfloat16 else None)


def class_entropy(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Minus the entropy of the batch's mean prediction as a share of the largest possible: -1 where classes are even.

    The logarithm's base drops out, as both are in it.
    """
    p = logits.softmax(dim=1).mean(dim=0)
    return (p * p.clamp_min(1e-12).log()).sum() / math.log(max(len(p), 2))


def logit_difference(
    teacher: Float[Tensor, "batch classes"], student: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Minus the mean absolute difference of the logits: lowest where the student errs most."""
    return -(teacher - student).abs().mean()


def divergence(teacher: Float[Tensor, "batch classes"], student: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """KL(softmax(teacher) || softmax(student)), averaged over images, with gradients through both."""
    return between(teacher.log_softmax(dim=1), student.log_softmax(dim=1)).mean()


def between(log_p: Float[Tensor, "batch classes"], log_q: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """KL(p || q) of every image, from logarithms: its gradient is finite where a probability is 0 in float32, too."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def adversarial(teacher: Float[Tensor, "batch classes"], student: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Minus the divergence of the student's answer from the teacher's where both choose one class; mean over images.

    KL(p_teacher || p_student) in nats at temperature 1, and 0 for an image of which they choose different classes: the
    student is to be unsure of such, and it is already. Gradients go through both answers.
    """
    log_p, log_q = teacher.log_softmax(dim=1), student.log_softmax(dim=1)
    agree = teacher.argmax(dim=1) == student.argmax(dim=1)
    return -(agree * between(log_p, log_q)).mean()
