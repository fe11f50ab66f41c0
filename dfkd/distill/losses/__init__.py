"""What a student can learn from a teacher, one file a loss; `--loss` finds them here by name, in any case.

A loss is an nn.Module (or a function) of the student's and the teacher's `Outputs` that returns a scalar, the mean over
the batch. What else it may have:

- `taps`: the features that it reads. `first` and `last` are single taps (the first BatchNorm's output, the last
  linear layer's input); `stage`, `pre` and `begin` are groups (`Outputs.group`): the last map of every resolution, the
  same before its activation, and the first map of that resolution and width.
- `weight`: its default weight, from its paper; 1 where it has none.
- `setup(student, teacher)`: called once with the outputs of a first batch, to build parameters of its own; they train
  with the student, are saved in the checkpoint, and are not part of the student.
- `bind(setting)`: called before that with the two networks, for losses that run them on images of their own.
- `finish()`: called once after the last step.
- `reads_kept = True`: it heeds `Outputs.kept`.
"""

from dfkd.distill.losses.ab import AB
from dfkd.distill.losses.alpha import Alpha
from dfkd.distill.losses.at import AT
from dfkd.distill.losses.bss import BSS
from dfkd.distill.losses.cc import CC
from dfkd.distill.losses.cgan import CGAN
from dfkd.distill.losses.crd import CRD
from dfkd.distill.losses.cwd import CWD
from dfkd.distill.losses.dist import DIST
from dfkd.distill.losses.dkd import DKD
from dfkd.distill.losses.explicit import Explicit
from dfkd.distill.losses.fitnet import FitNet
from dfkd.distill.losses.fsp import FSP
from dfkd.distill.losses.ft import FT
from dfkd.distill.losses.kd import KD
from dfkd.distill.losses.logits import Logits
from dfkd.distill.losses.noise import Noise
from dfkd.distill.losses.nst import NST
from dfkd.distill.losses.ofd import OFD
from dfkd.distill.losses.pkt import PKT
from dfkd.distill.losses.relation import Relation
from dfkd.distill.losses.reviewkd import ReviewKD
from dfkd.distill.losses.rkd import RKD
from dfkd.distill.losses.simkd import SimKD
from dfkd.distill.losses.sp import SP
from dfkd.distill.losses.standardized import Standardized
from dfkd.distill.losses.vid import VID

__all__ = [
    "AB",
    "AT",
    "BSS",
    "CC",
    "CGAN",
    "CRD",
    "CWD",
    "DIST",
    "DKD",
    "FSP",
    "FT",
    "KD",
    "NST",
    "OFD",
    "PKT",
    "RKD",
    "SP",
    "VID",
    "Alpha",
    "Explicit",
    "FitNet",
    "Logits",
    "Noise",
    "Relation",
    "ReviewKD",
    "SimKD",
    "Standardized",
]
