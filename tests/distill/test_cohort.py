"""One teacher for several students: who shares a pass, and that each gets what its own teacher says."""

from functools import partial

import torch

from dfkd.config.stages.shared import Input
from dfkd.distill.cohort import Cohort, Records, _SharedTeacher
from dfkd.formats.run_folder import Progress
from dfkd.models.classifier import Classifier
from dfkd.models.features.taps import Tap
from dfkd.models.load import load_model
from dfkd.system.device import Place

PLACE = Place(torch.device("cpu"), torch.float32)


def classifier(taps):
    torch.manual_seed(0)
    model = load_model("cifar_resnet:depth=8,width=4", Input("none", 8))
    return Classifier(model, PLACE, {name: Tap(path) for name, path in taps.items()}, fold=True)


def test_shared_teacher__answers_as_each_own_one_does_in_one_pass_where_they_are_folded_alike():
    """A tap on a convolution keeps the BatchNorm behind it: that is another network, and other last bits."""
    wanted = [{"stage1": "bn1"}, {"first": "conv1"}, {"stage1": "layer1.0.bn2", "last": "bn1"}, {}]
    view = torch.randn(3, 3, 8, 8)
    expected = [classifier(taps).outputs(view) for taps in wanted]
    classifiers = [classifier(taps) for taps in wanted]
    shared = _SharedTeacher(classifiers)
    passes = []
    for one in {id(c.network): c.network for c in classifiers}.values():
        one.register_forward_hook(lambda *given: passes.append(0))
    found = shared(view, [0, 1, 2, 3])
    assert len(passes) == 2
    for number, theirs in enumerate(expected):
        ours = found[number]
        assert torch.equal(ours.logits, theirs.logits)
        assert ours.features.keys() == theirs.features.keys() == wanted[number].keys()
        assert all(torch.equal(ours.features[name], theirs.features[name]) for name in ours.features)
        assert torch.equal(classifiers[number].outputs(view).logits, theirs.logits), "what losses ask it themselves"
    assert shared(view, [1]).keys() == {1} and len(passes) == 7


def test_shared_teacher__is_held_once():
    classifiers = [classifier({}), classifier({"stage1": "bn1"})]
    _SharedTeacher(classifiers)
    assert classifiers[0].network is classifiers[1].network
    assert classifiers[0].model is classifiers[1].model


def test_records__give_each_student_its_own_metrics(tmp_path):
    kept, rows = [Progress(tmp_path / str(n), "") for n in range(11)], {}
    for number, record in enumerate(kept):
        record.folder.mkdir()
        record.follower = partial(rows.__setitem__, number)
    row = {"step": 4, "1.loss": 0.5, "1.own.Loss": 0.25, "11.loss": 0.75, "images_per_second": 10.0}
    Records(kept, mutual=False).log(row)
    assert rows == {
        0: {"step": 4, "loss": 0.5, "own.Loss": 0.25, "images_per_second": 10.0},
        10: {"step": 4, "loss": 0.75, "images_per_second": 10.0},
    }, "the others wait"


def test_tell__says_who_waits():
    cohort = Cohort.__new__(Cohort)
    cohort.students = [None, None]
    assert cohort.tell({"2.loss": 0.5}) == "loss waits 0.5000"
