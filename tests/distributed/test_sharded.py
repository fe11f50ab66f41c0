"""A teacher whose parameters are divided among two processes says what it says as a whole, to rounding."""

import torch


def test_teacher__says_the_same_when_it_is_divided(computed):
    whole = computed[0]["divided", "teacher"]
    for rank in (rank["divided", "teacher"] for rank in computed[1:]):
        assert rank.keys() == whole.keys()
        for name in whole:
            kind = name.partition(" ")[2]
            if kind != "numbers":
                assert torch.allclose(rank[name], whole[f"whole {kind}"], rtol=1e-4, atol=1e-5), name
        assert int(rank["whole numbers"]) == int(whole["whole numbers"])
    held = [int(rank["divided", "teacher"]["divided numbers"]) for rank in computed[1:]]
    assert sum(held) == int(whole["whole numbers"])
    assert max(held) < 0.55 * sum(held)
    assert int(whole["divided numbers"]) == int(whole["whole numbers"]), "one process has it as a whole"


def test_commands__give_the_same_with_a_divided_teacher(computed):
    for rank in (rank["divided", "commands"] for rank in computed[1:]):
        names = [name.removeprefix("True ") for name in rank if name.startswith("True")]
        assert {"agreement", "images", "logits"} <= {*names}
        for name in names:
            ours, theirs = rank[f"True {name}"].float(), rank[f"False {name}"].float()
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1 if name == "images" else 1e-5), name
    first, second = (rank["divided", "commands"] for rank in computed[1:])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_commands__keep_the_weights_of_a_student_of_two_processes(computed):
    """Before the first step they are those of one process, to the bit, and after the last step the student's."""
    one, first, _ = (rank["divided", "commands"] for rank in computed)
    names = [name.removeprefix("False student ") for name in first if name.startswith("False student")]
    assert names and {name.split()[2] for name in first if " kept " in name} == {"0", "2"}
    for name in names:
        assert torch.equal(first[f"False kept 0 {name}"], one[f"False kept 0 {name}"]), name
        assert torch.equal(first[f"False kept 2 {name}"], first[f"False student {name}"]), name
