"""DAFL: a generator of images that the teacher classifies confidently, with all classes equally often."""

from torch import Tensor

from dfkd.generators.base import Task
from dfkd.generators.generator import GeneratorMethod
from dfkd.generators.terms import activation, class_entropy, one_hot
from dfkd.system.paper import Paper
from dfkd.training.sources import Student


class DAFL(GeneratorMethod):
    """A generator of images that the teacher classifies confidently, with all classes equally often.

        one_hot * CE(t, argmax t) - activation * mean |f| - entropy * H(mean prediction) / log(classes)

    t are the teacher's logits [batch, classes] and f its features. H is the entropy of the batch's mean prediction. The
    student is not needed.

    The authors' code takes the entropy's logarithm to the base 10. For ten classes this equals the share of the largest
    possible entropy, which is used here for any number of classes. The CIFAR settings of the authors are batch 1024,
    latent 1000, lr 0.02 and the weights 0.05, 0.01, 5. The defaults here are their MNIST weights, with the learning
    rate of most later papers. In their generator, the two BatchNorm layers between convolutions have an eps of 0.8.
    Here all have torch's 1e-5.
    """

    paper = Paper("Data-free learning of student networks", 2019, "1904.01186")
    taps = frozenset({"last"})

    def __init__(
        self,
        task: Task,
        *,
        latent: int = 100,
        width: int = 64,
        lr: float = 1e-3,
        steps: int = 2000,
        one_hot: float = 1.0,
        activation: float = 0.1,
        entropy: float = 5.0,
    ) -> None:
        """Build the generator network.

        `latent` is the width of the noise, `width` the channels of the last layers, and `lr` Adam's learning rate.
        `one_hot`, `activation` and `entropy` are the weights of the terms.
        """
        super().__init__(task, latent=latent, width=width, lr=lr, steps=steps)
        self.weights = {"one_hot": one_hot, "activation": activation, "class_entropy": entropy}

    def update(self, student: Student | None) -> dict[str, Tensor]:
        """Take one step of the generator."""
        answer = self.teach(self.make(self.task.batch))
        terms = {
            "one_hot": one_hot(answer.logits),
            "activation": activation(answer.features["last"]),
            "class_entropy": class_entropy(answer.logits),
        }
        return self.learn(terms, self.weights)
