"""What a method's name becomes, and what its class promises of it."""

import pytest
import torch

from dfkd import generators
from dfkd.generators.base import Method
from dfkd.generators.build import build, choose
from dfkd.system.errors import RequestError


@pytest.mark.parametrize("name", sorted(generators.__all__))
def test_a_method_works_without_batchnorm_or_says_that_it_cannot(make, name):
    kind = getattr(generators, name)
    assert issubclass(kind, Method) and kind.__doc__ and kind.paper is not None
    if kind.needs_statistics:
        with pytest.raises(
            RequestError, match=f"^generator {name.lower()}: it reads the statistics .* has none; dafl, dfad"
        ):
            make(name.lower(), real=kind.needs_real, architecture="lenet5", size=32)
    else:
        assert make(name.lower(), real=kind.needs_real, architecture="lenet5", size=32).updates == 0


@pytest.mark.parametrize("name", ["dfad", "zskt"])
def test_a_teacher_without_a_gradient_is_refused(make, student, name):
    """Otherwise the generator would silently follow the student's gradient alone."""
    trees = "sklearn:kind=boosting,rounds=1,image_size=8"
    method = make(name, architecture=trees)
    with pytest.raises(RequestError, match="has none; give a network"):
        method.update(student)


@pytest.mark.parametrize("name", sorted(generators.__all__))
def test_every_method_learns_in_bfloat16(make, student_in_bfloat16, name):
    """`--precision auto` is bfloat16 on many processors and GPUs; float32 is what the other tests compute in."""
    kind = getattr(generators, name)
    method = make(name.lower(), real=kind.needs_real, low=True)
    for _ in range(2):
        metrics = method.update(student_in_bfloat16 if kind.needs_student else None)
    assert metrics and all(value.isfinite() for value in metrics.values())
    weights = [p for part in method.parts().values() if isinstance(part, torch.nn.Module) for p in part.parameters()]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in weights)


def test_the_methods_that_the_message_names_work_without():
    for name in ("DAFL", "DFAD", "ZSKT"):
        assert not getattr(generators, name).needs_statistics


def test_method__that_needs_the_student_uses_it():
    class Needing(Method):
        needs_student = True

    class Plain(Method):
        pass

    assert Needing.uses_student and not Plain.uses_student


def test_names_are_found_in_any_case_and_spelled_in_one():
    assert choose("FastDFKD:steps=5").identity == choose("fastdfkd:steps=5").identity


def test_a_method_of_ones_own_is_named_with_dots_and_its_code_decides(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dfkd.generators.dafl import DAFL\n\nclass Mine(DAFL):\n    '''My own.'''\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    component = choose("mine.Mine:latent=5")
    assert component.name == "mine.Mine" and "(code " in component.identity


def test_a_method_that_learns_from_real_images_asks_for_them(make):
    with pytest.raises(RequestError, match="generator mosaickd: it also learns from real images, and there are none"):
        make("mosaickd", real=False)


@pytest.mark.parametrize("name", ["cmi", "dafl", "mosaickd"])
def test_build__draws_weights_by_the_seed_and_keeps_torchs_random_state(make, name):
    task, made = make(name, real=name == "mosaickd").task, []
    for callers in (1, 2):
        torch.manual_seed(callers)
        before = torch.get_rng_state()
        method = build(choose(name), task.teacher.model, task.teacher.place, batch=task.batch, seed=3, real=task.real)
        assert torch.equal(torch.get_rng_state(), before)
        made.append([value for part in method.parts().values() for value in _tensors(part.state_dict())])
    assert made[0] and all(map(torch.equal, *made))


def _tensors(state):
    return [value for value in state.values() if isinstance(value, torch.Tensor)]
