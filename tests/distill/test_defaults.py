"""Notes on the defaults of a distillation."""

import pytest

from dfkd.config import DistillConfig
from dfkd.distill.defaults import settled
from dfkd.models.load import load_model

SAME, NARROWER, OTHER = "cifar_resnet:depth=8,width=8", "cifar_resnet:depth=8,width=4", "lenet5"


@pytest.mark.parametrize(
    ("name", "init", "said"), [(SAME, "none", True), (NARROWER, "teacher", False), (OTHER, "none", False)]
)
def test_settled__says_that_a_student_of_the_teachers_shapes_begins_with_random_weights(capsys, name, init, said):
    teacher, student = (load_model(text, classes=10, channels=3) for text in (SAME, name))
    config = DistillConfig(teacher="t", student=name, samples=("s",), out="o", loss=("kd",))
    assert settled(config, teacher, student, name, ())[0].init == init
    note = "note: the student has the teacher's shapes and random weights; --init teacher makes it a copy"
    assert (note in capsys.readouterr().err) == said
