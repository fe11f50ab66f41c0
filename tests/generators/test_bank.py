import pytest
import torch

from dfkd.generators.bank import Bank, BankMethod
from dfkd.system.errors import RequestError


def images(*grays):
    return torch.tensor(grays)[:, None, None, None].expand(-1, 1, 2, 2) / 255


def grays(bank):
    return bank.pixels[:, 0, 0, 0].tolist()


def test_images_are_kept_in_order_as_pixels_with_their_classes():
    bank = Bank(2, 1)
    assert len(bank) == 0
    bank.add(images(1, 2), torch.tensor([3, 0]))
    bank.add(images(255.0, 0), torch.tensor([1, 1]))
    assert len(bank) == 4 and grays(bank) == [1, 2, 255, 0] and bank.labels.tolist() == [3, 0, 1, 1]
    assert bank.pixels.dtype == torch.uint8 and bank.pixels.shape == (4, 2, 2, 1)


def test_the_state_is_all_of_it():
    bank, other = Bank(2, 1), Bank(2, 1)
    bank.add(images(9, 8), torch.tensor([0, 1]))
    other.add(images(1), torch.tensor([5]))
    other.load_state_dict(bank.state_dict())
    assert grays(other) == [9, 8] and other.labels.tolist() == [0, 1]
    other.add(images(7), torch.tensor([0]))
    assert len(bank) == 2, "the two share nothing"


class Counting(BankMethod):
    """Every second update completes a batch of images of one gray level."""

    def __init__(self, task):
        super().__init__(task, per_batch=2)

    def update(self, student):
        self.updates += 1
        if self.updates % 2 == 0:
            size = self.task.size
            gray = torch.full((self.task.batch, 1, size, size), self.updates / 255)
            self.keep(gray, torch.zeros(self.task.batch, dtype=torch.int64))
        return {"count": torch.tensor(float(self.updates))}


def test_a_method_with_a_bank_gives_images_in_order_and_no_more_than_it_has(make):
    method = Counting(make("dafl:latent=4,width=2", batch=3).task)
    assert method.first == 2 and method.updates_for(7) == 6
    for _ in range(4):
        method.update(None)
    assert method.available() == 6
    assert (method.images(2, 3)[:, 0, 0, 0] * 255).round().tolist() == [2, 4, 4]
    drawn = method.sample(50, torch.Generator().manual_seed(0))
    assert {*(drawn[:, 0, 0, 0] * 255).round().tolist()} == {2, 4}
    with pytest.raises(RequestError, match="6 images were made, 7 are wanted; give more --steps"):
        method.images(0, 7)


def test_the_classes_are_copied_as_the_images_are():
    bank, labels = Bank(2, 1), torch.tensor([1, 2])
    bank.add(images(5, 6), labels)
    labels.fill_(9)
    assert bank.labels.tolist() == [1, 2]


def test_images_that_are_not_finite_are_refused_and_not_kept_as_black(make):
    method = Counting(make("dafl:latent=4,width=2", batch=3).task)
    with pytest.raises(RequestError, match="images of counting are no longer finite after 0 updates"):
        method.keep(torch.full((3, 1, 8, 8), torch.nan), torch.zeros(3, dtype=torch.int64))
    assert len(method.bank) == 0
