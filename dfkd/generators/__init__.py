"""Images made from the teacher where there is no pool. A method is a class here, one file each.

`dfkd generate --method NAME` makes a folder of images with one, `dfkd distill --source NAME` lets it learn along with
the student. The name is looked up here (in any case), or imported where it has dots: `my_package.inversion.Mine`. Each
is a `dfkd.generators.base.Method`; a new one is a file and its line below, `__all__` follows.
"""

from dfkd.generators.base import Method
from dfkd.generators.cmi import CMI
from dfkd.generators.dafl import DAFL
from dfkd.generators.deepinversion import AdaptiveDeepInversion, DeepInversion
from dfkd.generators.dfad import DFAD
from dfkd.generators.fastdfkd import FastDFKD
from dfkd.generators.mosaickd import MosaicKD
from dfkd.generators.nayer import NAYER
from dfkd.generators.zskt import ZSKT

__all__ = sorted(name for name, kind in globals().items() if isinstance(kind, type) and issubclass(kind, Method))
__all__.remove("Method")
