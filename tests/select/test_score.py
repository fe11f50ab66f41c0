import numpy as np
import pytest
import torch

from dfkd.data import open_pool
from dfkd.data.own import data_of
from dfkd.select.score import _directions, score_logits, score_pool
from dfkd.system.errors import RequestError


def test_scores_against_a_plain_formula(rng):
    logits = rng.normal(size=(50, 7)) * 4
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    confidence, entropy, prediction = score_logits(torch.from_numpy(logits).float())
    np.testing.assert_allclose(confidence.numpy(), p.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(entropy.numpy(), -(p * np.log(p)).sum(axis=1) / np.log(7), rtol=1e-4, atol=1e-6)
    assert prediction.tolist() == p.argmax(axis=1).tolist()


def test_a_probability_of_zero_adds_nothing():
    confidence, entropy, _ = score_logits(torch.tensor([[200.0, 0.0, -200.0], [1.0, 1.0, 1.0]]))
    assert confidence.tolist() == pytest.approx([1, 1 / 3])
    assert entropy[0] == 0
    assert abs(entropy[1] - 1) < 1e-6


def test_what_is_not_finite_is_marked():
    nan, inf = float("nan"), float("inf")
    confidence, entropy, _ = score_logits(torch.tensor([[nan, 0.0], [inf, 0.0], [-inf, 0.0], [1.0, 0.0]]))
    assert confidence.isfinite().tolist() == entropy.isfinite().tolist() == [False, False, False, True]


def test_one_class_has_no_uncertainty():
    assert score_logits(torch.zeros(2, 1))[1].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e5, 3e8])
def test_directions_fit_float16_in_any_precision(rng, dtype, scale):
    features = torch.from_numpy(scale * rng.normal(size=(6, 8))).to(dtype)
    found = _directions(features)
    assert found.dtype == torch.float16 and found.isfinite().all()
    cosines = torch.nn.functional.cosine_similarity(found.float(), features.float())
    torch.testing.assert_close(cosines, torch.ones(6), rtol=0, atol=1e-5)


@pytest.mark.parametrize("images", [100, 200, 700])
def test_as_many_unreadable_images_as_are_allowed_do_not_end_the_scoring(tmp_path, images):
    pool = open_pool([data_of(np.zeros((images, 1, 1, 3), np.uint8), "pool")], image_size=1, channels=3)

    def scored(unreadable):
        def scorer(todo, advance):
            yield dict.fromkeys(range(unreadable), "is damaged")

        return score_pool(pool, tmp_path, scorer, tap=None, max_unreadable=0.29)

    allowed = images * 29 // 100
    assert len(scored(allowed).problems) == allowed
    with pytest.raises(RequestError, match=f"^{allowed + 1} of {images} images cannot be read"):
        scored(allowed + 1)
