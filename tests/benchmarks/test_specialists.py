"""The accuracy as specialists are added, of a small random network, and its picture."""

import xml.etree.ElementTree as ET

import numpy as np
import torch

from dfkd.models.load import load_model


def test_added__begins_with_the_generalist_and_ends_with_the_vote(tmp_path, script):
    benchmark = script("specialists")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 12, 12, 3), dtype=np.uint8), rng.integers(0, 10, 40)
    np.savez(tmp_path / "test.npz", images=images, labels=labels)
    model = "specialists:network='cifar_resnet:depth=8,width=2',groups='0+3+5 1+7'"
    torch.manual_seed(0)
    found = benchmark.added(model, tmp_path / "test.npz")
    torch.manual_seed(0)
    built = load_model(model)
    views = built.preprocess(torch.from_numpy(images))
    networks = (built.module.generalist, built.module)
    with torch.no_grad():
        general, vote = ((network(views).argmax(dim=1).numpy() == labels).mean() for network in networks)
        built.module.special.classes[1] = False  # a specialist without classes never votes
        one = (built.module(views).argmax(dim=1).numpy() == labels).mean()
    assert [voting for voting, *_ in found] == [0, 1, 2]
    np.testing.assert_allclose([top1 for _, top1, _ in found], [general, one, vote], atol=1e-6)
    assert one != vote
    picture = benchmark.picture([(seed, *line) for seed in (0, 1) for line in found])
    drawn = ET.fromstring(picture)
    assert len(drawn.findall("{*}circle")) == 6 and len(drawn.findall("{*}polyline")) == 2
    of_all = ET.fromstring(benchmark.picture([(0, voting, top1, top1) for voting, top1, _ in found]))
    assert len(of_all.findall("{*}circle")) == 3 and len(of_all.findall("{*}polyline")) == 1
