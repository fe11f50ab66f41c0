"""Generators: methods that make images from the teacher where there is no pool.

Each method is a class in a file of its own:

- `dfkd generate --method NAME` writes a folder of images.
- `dfkd distill --source NAME` trains the method together with the student.

NAME is looked up here, in any case. A NAME with dots is imported, such as `my_package.inversion.Mine`. Every method is
a subclass of `dfkd.generators.base.Method`. A new method needs a file and an import below. `__all__` follows from the
imports.
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
