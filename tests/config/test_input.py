import pytest

from dfkd.config.stages.shared import AS_STATED, Input, ModelConfig


def test_over__keeps_what_is_given_and_takes_the_rest_from_the_other():
    other = Input("cifar10", 32, 0.9, "bicubic")
    assert AS_STATED.over(other) == other == other.over(Input("none", 8, 1.0, "bilinear"))
    assert Input(image_size=64, crop_pct=0.5).over(other) == Input("cifar10", 64, 0.5, "bicubic")


def test_over__takes_no_value_for_a_missing_one_because_it_is_small():
    assert Input(image_size=0).over(Input(image_size=8)) == Input(image_size=0)


@pytest.mark.parametrize("given", [{}, {"normalize": "none", "image_size": 8, "crop_pct": 0.5}, {"normalize": ""}])
def test_input__of_options_leaves_the_rest_to_the_model(given):
    expected = Input(**{name: value for name, value in given.items() if value != ""})
    assert ModelConfig(**given).input == expected
