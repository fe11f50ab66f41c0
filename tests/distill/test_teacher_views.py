import numpy as np
import torch

from dfkd.distill.teacher_cache.views import TeacherViews


def views(count=3, images=5):
    """Crops and logits that say which view of which image they are."""
    where = np.stack(np.meshgrid(np.arange(count), np.arange(images), indexing="ij"), axis=-1)
    crops = np.concatenate([where, np.zeros((count, images, 1))], axis=-1).astype(np.int16)
    return TeacherViews({"crops": crops, "logits": where.astype(np.float16)}, classes=2)


def taken(found, *rows):
    crops, logits = found.take(torch.tensor(rows))
    assert torch.equal(crops[:, :2].float(), logits)
    assert crops[:, 1].tolist() == [*rows]
    return crops[:, 0].tolist()


def test_every_image_shows_its_views_in_turn():
    found = views()
    assert (found.views, found.images) == (3, 5)
    seen = [taken(found, 0, 4), taken(found, 4, 2), taken(found, 4, 0), taken(found, 4, 1)]
    assert seen == [[0, 0], [1, 0], [2, 1], [0, 0]]


def test_an_image_twice_in_a_batch_shows_one_view():
    found = views()
    assert [taken(found, 3, 3), taken(found, 3)] == [[0, 0], [1]]


def test_the_state_is_whose_turn_it_is():
    first = views(count=300)
    for _ in range(280):
        taken(first, 1)
    second = views(count=300)
    second.load_state_dict(first.state_dict())
    assert taken(second, 0, 1) == taken(first, 0, 1) == [0, 280]
