import numpy as np
import torch

from dfkd.data.images.decode import decode
from dfkd.generators.base import quantize
from dfkd.generators.pictures import GeneratedPictures
from dfkd.select.score import score_logits


def test_images_are_made_again_as_they_were_scored(make):
    method = make("dafl:latent=4,width=2")
    pictures = GeneratedPictures(method, "dafl")
    predictions = np.concatenate([pictures.score(method.task.teacher, count).prediction for count in (30, 50)])
    assert len(pictures) == 80 and pictures.image_size == 8 and not pictures.encoded
    indices = np.array([0, 3, 29, 30, 79])
    pixels = pictures.images(indices).pixels
    assert np.array_equal(pixels, quantize(method.images(0, 80)).numpy()[indices])
    logits = method.task.teacher(torch.from_numpy(pixels)).logits
    assert np.allclose(pictures.scores.logits(indices), logits, atol=2e-2)
    confidence, _, prediction = score_logits(logits)
    assert np.allclose(pictures.scores.images.confidence[indices], confidence, atol=1e-5)
    assert np.array_equal(pictures.scores.images.prediction[indices], prediction)
    assert np.array_equal(predictions, pictures.scores.images.prediction)
    assert pictures.origins(indices[:2]) == ["dafl/0", "dafl/3"]
    assert np.array_equal(decode(pictures.files(indices)[1], 8, 1).pixels, pixels[1])


def test_the_last_block_may_be_cut_anywhere(make):
    method = make("dafl:latent=4,width=2", batch=300)
    pictures = GeneratedPictures(method, "dafl")
    whole = quantize(method.images(0, 700)).numpy()
    for indices in (np.arange(700), np.arange(250, 520), np.array([255, 256, 511, 512, 699])):
        assert np.array_equal(pictures.images(indices).pixels, whole[indices])
