"""Networks that torchvision lacks, and the code that loads, checks, combines and exports models.

`load.py` turns a MODEL text into a network. A MODEL name without a dot is looked up in `__all__` first, then in
`torchvision.models`.
"""

from dfkd.models.architectures.cifar_resnet import cifar_resnet
from dfkd.models.architectures.clip import clip
from dfkd.models.architectures.estimator import sklearn
from dfkd.models.architectures.lenet import lenet5, lenet5_half
from dfkd.models.architectures.pruned import pruned
from dfkd.models.architectures.quantized import quantized
from dfkd.models.architectures.small_mobile import mobilenet_v2_small, shufflenet_v2_small, squeezenet_small
from dfkd.models.architectures.small_resnet import resnet18_small, resnet34_small, resnet50_small
from dfkd.models.architectures.soft_tree import soft_tree
from dfkd.models.architectures.specialists import specialists
from dfkd.models.architectures.vgg import vgg
from dfkd.models.architectures.wide_resnet import wide_resnet

__all__ = [
    "cifar_resnet",
    "clip",
    "lenet5",
    "lenet5_half",
    "mobilenet_v2_small",
    "pruned",
    "quantized",
    "resnet18_small",
    "resnet34_small",
    "resnet50_small",
    "shufflenet_v2_small",
    "sklearn",
    "soft_tree",
    "specialists",
    "squeezenet_small",
    "vgg",
    "wide_resnet",
]

DEFAULT_IMAGE_SIZE = 32
