"""What a student can learn from a teacher, one file a loss; `--loss` finds them here by name, in any case.

A loss is an nn.Module (or a function) of the student's and the teacher's `Outputs` that returns a scalar. A module may
have `taps`, the names of the features it reads, and `setup(student, teacher)`, called once with the outputs of a first
batch, to build parameters of its own (projections); they train with the student and are not part of it.
"""

from dfkd.distill.losses.explicit import Explicit
from dfkd.distill.losses.kd import KD
from dfkd.distill.losses.relation import Relation

__all__ = ["KD", "Explicit", "Relation"]
