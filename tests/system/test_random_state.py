import torch

from dfkd.system.random_state import Turn


def test_turn__draws_what_it_would_draw_alone():
    device = torch.device("cpu")
    alone = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        alone.append([torch.rand(3), torch.rand(3)])
    turns = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        turns.append(Turn(device))
    found = [[], []]
    for number in (0, 1, 1, 0):
        with turns[number]():
            found[number].append(torch.rand(3))
        torch.rand(5)
    assert all(map(torch.equal, found[0] + found[1], alone[0] + alone[1]))


def test_turn__keeps_what_a_block_that_fails_has_drawn():
    torch.manual_seed(0)
    turn = Turn(torch.device("cpu"))
    expected = [torch.rand(1), torch.rand(1)]
    try:
        with turn():
            assert torch.rand(1) == expected[0]
            raise ValueError
    except ValueError:
        pass
    with turn():
        assert torch.rand(1) == expected[1]
