from dfkd.training.loop import joined


def test_joined__keeps_the_names_and_their_order():
    row = joined({"loss": 1.0, "kd": 2.0}, {"one_hot": 3.0})
    assert list(row.items()) == [("loss", 1.0), ("kd", 2.0), ("one_hot", 3.0)]


def test_joined__a_source_replaces_nothing():
    row = joined({"loss": 1.0, "noise": 2.0}, {"loss": 3.0, "step": 4.0, "learning_rate": 5.0, "noise": 6.0})
    assert row == {
        "loss": 1.0, "noise": 2.0,
        "source.loss": 3.0, "source.step": 4.0, "source.learning_rate": 5.0, "source.noise": 6.0,
    }  # fmt: skip
    assert joined({}, {"loss": 1.0}) == {"loss": 1.0}
