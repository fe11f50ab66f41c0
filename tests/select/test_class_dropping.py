import torch

from dfkd.select.class_dropping import kept_classes


def test_keeps_the_probable_classes_and_always_the_largest():
    p = torch.tensor([[0.6, 0.3, 0.06, 0.04], [0.26, 0.25, 0.25, 0.24], [0.97, 0.01, 0.01, 0.01]])
    assert kept_classes(p.log(), 0.05).tolist() == [[True, True, True, False], [True] * 4, [True, False, False, False]]
    assert kept_classes(p.log(), 0.9).sum(dim=1).tolist() == [1, 1, 1]
    assert kept_classes(p.log(), 0.0).all()
