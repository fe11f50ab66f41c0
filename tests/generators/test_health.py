import math

import numpy as np
import pytest
import torch

from dfkd.generators import health
from dfkd.generators.health import Health, effective_classes, pairwise_distance


def test_effective_classes_count_even_ones_whole():
    assert effective_classes(torch.tensor([0, 1, 2, 3]), 10).item() == pytest.approx(4)
    assert effective_classes(torch.tensor([7, 7, 7]), 10).item() == pytest.approx(1)
    uneven = effective_classes(torch.tensor([0, 0, 0, 1]), 2).item()
    assert uneven == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_pairwise_distance_is_the_mean_root_mean_square():
    x = np.random.default_rng(0).random((4, 2, 3, 3))
    pairs = [np.sqrt(((x[i] - x[j]) ** 2).mean()) for i in range(4) for j in range(i)]
    assert pairwise_distance(torch.from_numpy(x)).item() == pytest.approx(np.mean(pairs))


@pytest.fixture
def watched(make):
    """A method whose images are as the test sets them."""
    method = make("dafl:latent=4,width=2")
    method.sample = lambda count, random: method.shown[:count]
    return method


def test_it_looks_every_so_many_steps_and_counts_the_teachers_work(watched):
    watched.shown = torch.rand(health.OBSERVED, 1, 8, 8)
    look = Health(watched)
    assert look.observe(health.EVERY - 1) == {} and watched.teacher_forwards == 0
    seen = look.observe(health.EVERY)
    assert {*seen} == {"generated_classes", "generated_distance", "statistics_distance"}
    assert watched.teacher_forwards == health.OBSERVED
    assert all(value.isfinite() for value in seen.values())


def test_a_collapse_is_told_once_with_its_sign(watched, capsys):
    watched.shown = torch.full((health.OBSERVED, 1, 8, 8), 0.5)
    look = Health(watched)
    look.observe(health.EVERY)
    said = capsys.readouterr().err
    assert "at step 50 the generator makes images of 1.0 of 4 classes" in said
    assert "images that differ by 0.0 of 255 gray levels" in said
    look.observe(2 * health.EVERY)
    assert capsys.readouterr().err == ""


def test_healthy_images_are_not_warned_of(watched, capsys, monkeypatch):
    watched.shown = torch.rand(health.OBSERVED, 1, 8, 8)
    answers = torch.eye(4).repeat(health.OBSERVED // 4, 1)
    from dfkd.models.features.outputs import Outputs

    monkeypatch.setattr(watched, "teach", lambda images: Outputs(answers))
    Health(watched).observe(health.EVERY)
    assert "warning" not in capsys.readouterr().err


def test_looking_moves_none_of_the_runs_random_numbers(make):
    method = make("dafl:latent=4,width=2")
    before = method.random.get_state()
    global_before = torch.get_rng_state()
    Health(method).observe(health.EVERY)
    assert torch.equal(method.random.get_state(), before) and torch.equal(torch.get_rng_state(), global_before)
