"""Predictions by old weights: how old they are, and that a checkpoint keeps them."""

import torch
from torch import nn

from dfkd.distill.stale import StaleCopies
from dfkd.system.device import Place

PLACE = Place(torch.device("cpu"), torch.float32)


def grown(students):
    """One step: every weight gains 1."""
    for student in students:
        student[1].weight.data += 1


def test_copies__are_as_old_as_is_wanted_and_go_on_from_a_checkpoint():
    students = [nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False)) for _ in range(2)]
    for number, student in enumerate(students):
        nn.init.constant_(student[1].weight, 100.0 * number)
    copies, view, heard = StaleCopies([1, 3, 3], PLACE), torch.ones(1, 1, 1, 1), []
    for step in range(8):
        said = copies.answers(students, view, step)
        heard.append([logits[0, 0].item() for logits in said[3]])
        assert said.keys() == {3}
        if step == 4:
            states = [{**copies.state_of(number)} for number in range(2)]
            copies = StaleCopies([3], PLACE)
            copies.load(students, states)
        grown(students)
    assert [first for first, _ in heard] == [0, 0, 0, 3, 3, 3, 6, 6]
    assert [second - first for first, second in heard] == [100] * 8
    assert StaleCopies([1], PLACE).state_of(0) == {}
