import pytest
import torch

from dfkd.generators.source import GeneratedSource
from dfkd.training.sources import Source


@pytest.fixture
def turns(make):
    """A source whose method only notes when its turn comes."""

    def build(every, turns, first):
        method = make("dafl:latent=4,width=2")
        method.every, method.turns, method.first = every, turns, first

        def note(student):
            method.updates += 1
            return {"seen": torch.tensor(float(method.updates))}

        method.update = note
        return GeneratedSource(method)

    return build


def test_a_method_has_its_turn_every_so_many_steps(turns, student):
    source = turns(every=3, turns=2, first=5)
    warmed = 0
    while source.warm_up(student) is not None:
        warmed += 1
    assert warmed == source.generator_steps == 5
    assert isinstance(source, Source) and source.images is None
    counts = []
    for _ in range(8):
        metrics = source.update(student)
        counts.append(source.generator_steps)
        assert metrics["seen"] == counts[-1], "a step without a turn shows what was last seen"
    assert counts == [5, 5, 5, 7, 7, 7, 9, 9]


def test_its_images_have_random_numbers_of_their_own_and_the_state_has_everything(make, student):
    def steps(source, count):
        drawn = []
        while source.warm_up(student) is not None:
            pass
        for _ in range(count):
            source.update(student)
            drawn.append(source.sample(3).pixels)
        return torch.stack(drawn)

    whole = steps(GeneratedSource(make("dafl:latent=4,width=2")), 6)
    first = GeneratedSource(make("dafl:latent=4,width=2"))
    assert torch.equal(steps(first, 3), whole[:3])
    torch.manual_seed(123)
    second = GeneratedSource(make("dafl:latent=4,width=2"))
    second.load_state_dict(first.state_dict())
    assert torch.equal(steps(second, 3), whole[3:])
    assert second.teacher_forwards == 6 * second.method.task.batch
    assert not torch.equal(whole[0], whole[1])
    assert first.sample(3).rows is None
