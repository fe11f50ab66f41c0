import torch

from dfkd.models.features.outputs import Outputs


def test_a_group_goes_from_the_shallowest_to_the_deepest():
    names = ["stage10", "first", "stage2", "pre1", "stage1", "last"]
    outputs = Outputs(torch.zeros(1, 2), {name: torch.tensor(float(i)) for i, name in enumerate(names)})
    assert [int(x) for x in outputs.group("stage")] == [4, 2, 0]
    assert [int(x) for x in outputs.group("pre")] == [3]
    assert outputs.group("begin") == []
