"""The losses that `--loss` finds by name, in upper or lower case; one file per loss.

Each loss is a `dfkd.distill.loss.Loss`. A new loss is a file here and an import line below. The documentation, the
benchmarks and the tests find the loss through `__all__`.
"""

from dfkd.distill.loss import Loss
from dfkd.distill.losses.ab import AB
from dfkd.distill.losses.alpha import Alpha
from dfkd.distill.losses.at import AT
from dfkd.distill.losses.bss import BSS
from dfkd.distill.losses.byot import BYOT
from dfkd.distill.losses.cc import CC
from dfkd.distill.losses.cgan import CGAN
from dfkd.distill.losses.codistillation import Codistillation
from dfkd.distill.losses.crd import CRD
from dfkd.distill.losses.cskd import CSKD
from dfkd.distill.losses.cwd import CWD
from dfkd.distill.losses.ddgsd import DDGSD
from dfkd.distill.losses.dist import DIST
from dfkd.distill.losses.dkd import DKD
from dfkd.distill.losses.dml import DML
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
from dfkd.distill.losses.srd import SRD
from dfkd.distill.losses.standardized import Standardized
from dfkd.distill.losses.vid import VID

__all__ = sorted(name for name, kind in globals().items() if isinstance(kind, type) and issubclass(kind, Loss))
__all__.remove("Loss")
