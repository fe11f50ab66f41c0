"""Predictions of student and teacher for the same images, and their statistics."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from dfkd.system.text import class_name, counted
from dfkd.training.calibration import calibration_error

CASES = {
    "lost": "The teacher is right, the student is not",
    "won": "The student is right, the teacher is not",
    "both": "Both are wrong, with different answers",
    "disagree": "Student and teacher disagree",
}


@dataclass(frozen=True)
class Answers:
    """Predicted classes and confidences of student and teacher, and the divergence between both, by image."""

    student: Int[np.ndarray, " images"]
    teacher: Int[np.ndarray, " images"]
    student_confidence: Float[np.ndarray, " images"]
    teacher_confidence: Float[np.ndarray, " images"]
    divergence: Float[np.ndarray, " images"]
    """KL(teacher || student) in nats."""
    labels: Int[np.ndarray, " images"] | None = None
    unreadable: Mapping[int, str] = field(default_factory=dict)
    """Why images of the data were left out, by index."""

    @property
    def indices(self) -> Int[np.ndarray, " images"]:
        """Index of each image in the data."""
        return np.delete(np.arange(len(self.student) + len(self.unreadable)), list(self.unreadable))

    @property
    def differ(self) -> Bool[np.ndarray, " images"]:
        """Mask of the images for which student and teacher predict different classes."""
        return self.student != self.teacher

    @property
    def sides(self) -> list[tuple[str, Int[np.ndarray, " images"], Float[np.ndarray, " images"]]]:
        """Name, predictions and confidences of the student and of the teacher."""
        return [
            ("student", self.student, self.student_confidence),
            ("teacher", self.teacher, self.teacher_confidence),
        ]

    def disagreements(self) -> Int[np.ndarray, " found"]:
        """Return the rows for which the predictions differ, the largest divergence first."""
        rows = np.flatnonzero(self.differ)
        return rows[np.argsort(-np.nan_to_num(self.divergence[rows], nan=np.inf), kind="stable")]

    def case(self, row: int) -> str:
        """Return the key of `CASES` for an image whose predictions differ."""
        if self.labels is None:
            return "disagree"
        right = [side[row] == self.labels[row] for side in (self.teacher, self.student)]
        return "lost" if right[0] else "won" if right[1] else "both"


@dataclass(frozen=True)
class Explanation:
    """Where a student and its teacher disagree on some data: the predictions, and some of the images."""

    student: str
    teacher: str
    data: str
    answers: Answers
    names: Sequence[str]
    origins: Sequence[str]
    """Origins of the shown images, which are the first ones of `Answers.disagreements`."""
    images: UInt8[np.ndarray, "shown height width channels"]
    raw: bool
    cams: Sequence[Float[np.ndarray, "shown height width"] | None]
    """Grad-CAM maps of the student and of the teacher. None for a network without a feature map."""


def facts(found: Explanation) -> list[tuple[str, str]]:
    """Return the statistics of all images, as pairs of name and text."""
    answers = found.answers
    apart = int(answers.differ.sum())
    less = f"; {len(answers.unreadable):,} cannot be read" if answers.unreadable else ""
    lines = [
        ("student", found.student),
        ("teacher", found.teacher),
        ("data", f"{found.data}, {len(answers.student):,} images{less}"),
        ("agreement", f"{1 - answers.differ.mean():.2%}; they disagree on {counted(apart, 'image')}"),
        ("KL(teacher || student), nats", f"{np.nanmean(answers.divergence):.4f}, the mean over images"),
    ]
    if answers.labels is None:
        return lines
    cases = Counter(map(answers.case, np.flatnonzero(answers.differ).tolist()))
    for name, predicted, sure in answers.sides:
        right = predicted == answers.labels
        error = calibration_error(np.nan_to_num(sure), right)
        lines.append((f"{name}'s accuracy", f"{right.mean():.2%}; calibration error {error:.4f}"))
    return [*lines, *((CASES[case].lower(), counted(cases[case], "image")) for case in ("lost", "won", "both"))]


def terminal_lines(found: Explanation) -> list[str]:
    """Return the lines that the command prints."""
    pairs = [f"{class_name(a, found.names)} -> {class_name(b, found.names)}: {n:,}" for a, b, n in pairs_of(found)[:5]]
    said = [f"{name}: {value}" for name, value in facts(found)]
    return [*said, f"most frequent, teacher -> student: {'; '.join(pairs)}"] if pairs else said


def pairs_of(found: Explanation) -> list[tuple[int, int, int]]:
    """Return (teacher's class, student's class, number of images) where the two differ, the most frequent first."""
    differ = found.answers.differ
    pairs = Counter(zip(found.answers.teacher[differ].tolist(), found.answers.student[differ].tolist(), strict=True))
    return [(a, b, n) for (a, b), n in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))]
