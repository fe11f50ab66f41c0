import numpy as np
import pytest
import torch

from dfkd.distill.teacher_cache.compact import LARGEST, compact, expand


def logits(rows, classes, scale=3.0):
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(classes))


@pytest.mark.parametrize("classes", [2, 10, 64])
def test_of_few_classes_every_logit_is_kept(classes):
    given = logits(50, classes)
    kept = compact(given)
    assert {name: (column.dtype, column.shape) for name, column in kept.items()} == {
        "logits": (np.float16, (50, classes))
    }
    torch.testing.assert_close(expand(kept, classes), given, rtol=2**-11, atol=1e-6)


@pytest.mark.parametrize(("classes", "dtype"), [(65, np.uint8), (1000, np.uint16)])
def test_of_many_classes_the_largest_are_kept_and_the_others_share_what_is_left(classes, dtype):
    given = logits(50, classes).double()
    kept = compact(given)
    assert kept["logits"].shape == kept["classes"].shape == (50, LARGEST)
    assert (kept["classes"].dtype, kept["rest"].dtype, kept["rest"].shape) == (dtype, np.float16, (50,))
    back = expand(kept, classes).double()
    for row in range(50):
        order = np.argsort(-given[row].numpy())
        largest, others = order[:LARGEST], order[LARGEST:]
        torch.testing.assert_close(back[row, largest], given[row, largest], rtol=2**-10, atol=1e-6)
        assert len({*back[row, others].tolist()}) == 1
        # at temperature 4 the others have the probability that they had, all together
        p, q = (np.exp(x[row].numpy() / 4) / np.exp(x[row].numpy() / 4).sum() for x in (given, back))
        assert q[others].sum() == pytest.approx(p[others].sum(), rel=2e-3)
        for temperature, sign in ((16, 1), (1, -1)):
            p, q = (np.exp(x[row].numpy() / temperature) for x in (given, back))
            assert sign * (q[others].sum() / q.sum() - p[others].sum() / p.sum()) > 0


def test_what_float16_cannot_hold_is_cut():
    kept = compact(torch.tensor([[1e6, -1e6, 0.0]]))
    assert expand(kept, 3).tolist() == [[65504.0, -65504.0, 0.0]]
