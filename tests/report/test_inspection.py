import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfkd.config import InspectConfig
from dfkd.formats.manifest import write_manifest
from dfkd.report import explore, inspection
from dfkd.report.filter_picture import drawn, response
from dfkd.system.errors import RequestError

COLUMNS = {"confidence": "<f4", "prediction": "<u4", "reason": "u1", "row": "<u4"}


def images(page: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


def test_terminal(make_selection, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = make_selection(tmp_path / "s", [0, 0, 2], 3)
    inspection.run(InspectConfig(folder=str(folder)))
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in (
        "images: 3",
        "image: 4 x 4 pixels, 3 channels, raw",
        "teacher: lenet5@<t>.pt",
        "options: method threshold:gamma=0.7, count 3",
        "seed: 5",
        "threshold: confidence at least 0.5000; it admits 4 images",
        "kept classes: 1.67 of 3 per image on average",  # 3, 1 and 1
        "not_drawn 1",
        "confidence, selected 0.500 0.502 0.510 0.520 0.530 0.538 0.540",
        # the pool has 0.1 beside these three; the unreadable image's 1.0 is no score
        "confidence, pool 0.100 0.160 0.400 0.510 0.525 0.537 0.540",
        "0 2 " + "#" * 30,
        "1 0",
        "2 1 " + "#" * 15,
    ):
        assert line in lines
    assert list(tmp_path.iterdir()) == [folder]


def test_page(make_selection, tmp_path: Path) -> None:
    folder = make_selection(tmp_path / "s", [0, 0, 2], 3)
    inspection.run(InspectConfig(folder=str(folder), out=str(tmp_path / "s.html")))
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert [image.tolist() for image in images(page)] == [[[[i] * 3] * 4] * 4 for i in range(3)]
    assert 'class="pixelated"' in page and "<t>" not in page and 'title="pool/&lt;0&gt;.png"' in page
    assert re.findall(r"<h3>([^<]+)", page) == [
        "Classes before balance (grey) and after (blue)",
        "Class 0, 2 images",
        "Class 2, 1 image",
    ]
    assert re.findall(r"<figcaption>(0[^<]+)", page) == [
        "0.50, entropy 0.40, keeps all",
        "0.52, entropy 0.39, keeps 0",
        "0.54, entropy 0.38, keeps 2",
    ]
    assert "pool, 4 images. Narrow bars: selected, 3 images" in page and "threshold 0.500" in page


def test_classes_have_their_names(make_selection, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = make_selection(tmp_path / "s", [0, 0, 2], 3, names=["cat", "dog", "<b>owl"])
    inspection.run(InspectConfig(folder=str(folder), out=str(tmp_path / "s.html")))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "0 cat 2 " + "#" * 30 in lines and "1 dog 0" in lines and "2 <b>owl 1 " + "#" * 15 in lines
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert re.findall(r"<h3>(Class \d[^<]+)", page) == ["Class 0 cat, 2 images", "Class 2 &lt;b&gt;owl, 1 image"]
    assert page.count("predicted 0 cat with confidence") == 2 and "<b>owl" not in page


def test_gallery_spreads_over_confidence(make_selection, tmp_path: Path) -> None:
    folder = make_selection(tmp_path / "s", [1] * 23, 2)
    inspection.run(InspectConfig(folder=str(folder), out=str(tmp_path / "s.html")))
    shown = [int(image[0, 0, 0]) for image in images((tmp_path / "s.html").read_text())]
    assert shown == list(range(0, 23, 2))


def test_many_classes_are_capped_and_the_page_says_so(
    make_selection, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    predictions = [k for k in range(30) for _ in range(2 if k >= 15 else 1)]
    folder = make_selection(tmp_path / "s", predictions, 100)
    inspection.run(InspectConfig(folder=str(folder), out=str(tmp_path / "s.html")))
    page, says = (
        (tmp_path / "s.html").read_text(),
        "The 20 classes with the most images are shown, of 100; 70 have none.",
    )
    assert says in page and says in capsys.readouterr().out
    assert re.findall(r"<h3>Class (\d+)", page) == [str(k) for k in [*range(5), *range(15, 30)]]


def test_gray_images(make_selection, tmp_path: Path) -> None:
    folder = make_selection(tmp_path / "s", [0, 1], 2, channels=1)
    inspection.run(InspectConfig(folder=str(folder), out=str(tmp_path / "s.html")))
    assert [image.shape for image in images((tmp_path / "s.html").read_text())] == [(4, 4)] * 2


def test_larger_images_are_thumbnails(make_selection, tmp_path: Path) -> None:
    folder = make_selection(tmp_path / "s", [0, 1], 2, side=120, encoded=True)
    inspection.run(InspectConfig(folder=str(folder), out=str(tmp_path / "s.html")))
    page = (tmp_path / "s.html").read_text()
    first, second = images(page)
    assert first.shape == (96, 96, 3) and 'class="pixelated"' not in page
    assert abs(int(first.mean()) - 0) <= 2 and abs(int(second.mean()) - 1) <= 2


def test_samples_without_a_pool(make_selection, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = make_selection(tmp_path / "s", [0, 1], 2)
    (folder / "scores.parquet").unlink()
    inspection.run(InspectConfig(folder=str(folder), out=str(tmp_path / "s.html")))
    out = capsys.readouterr().out
    assert "confidence, selected" in out and "confidence, pool" not in out


def test_what_is_no_selection_is_refused(make_selection, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="dfkd select makes one"):
        inspection.run(InspectConfig(folder=str(tmp_path)))
    folder = make_selection(tmp_path / "s", [0], 2)
    with pytest.raises(RequestError, match=r"give FILE\.html"):
        inspection.run(InspectConfig(folder=str(folder), out=str(tmp_path / "s.pdf")))


def test_page__shows_images_that_are_out_by_reason(make_selection, tmp_path: Path) -> None:
    folder = make_selection(tmp_path / "s", [0, 0, 2], 3)
    pixels = np.arange(5, dtype=np.uint8)[:, None, None, None] * 50 + np.zeros((5, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "pool.npz", images=pixels)
    inspection.run(InspectConfig(folder=str(folder), out=str(tmp_path / "s.html"), pool=(str(tmp_path / "pool.npz"),)))
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    out = page.partition("<h2>Images that are out</h2>")[2]
    assert re.findall(r"<h3>([^<]+)", out) == ["Admitted and not drawn, 1 images"]
    assert [int(image[0, 0, 0]) for image in images(out)] == [200] and 'data-row="4"' in out
    assert re.findall(r'data-row="(\d)"', page) == ["0", "1", "2", "4"]


def test_a_pool_that_is_another_one_is_refused(make_selection, tmp_path: Path) -> None:
    folder = make_selection(tmp_path / "s", [0, 0, 2], 3)
    np.savez(tmp_path / "pool.npz", images=np.zeros((9, 4, 4, 3), np.uint8))
    config = InspectConfig(folder=str(folder), out=str(tmp_path / "s.html"), pool=(str(tmp_path / "pool.npz"),))
    with pytest.raises(RequestError, match="--pool has 9 images, and the selection is of a pool of 5"):
        inspection.run(config)
    with pytest.raises(RequestError, match="changes nothing without --out"):
        inspection.run(InspectConfig(folder=str(folder), pool=("p",)))
    (folder / "scores.parquet").unlink()
    with pytest.raises(RequestError, match="are not from a pool"):
        inspection.run(config)


def test_explorer__has_the_stored_scores_of_usable_images(make_selection, tmp_path: Path) -> None:
    folder = make_selection(tmp_path / "s", [0, 0, 2], 3)
    inspection.run(InspectConfig(folder=str(folder), out=str(tmp_path / "s.html")))
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    pool = json.loads(re.search(r'id="pool">(.*?)</script>', page)[1])
    column = {name: np.frombuffer(base64.b64decode(pool[name]), kind) for name, kind in COLUMNS.items()}
    assert column["confidence"].tolist() == pytest.approx([0.5, 0.52, 0.54, 0.1])
    assert column["row"].tolist() == [0, 1, 2, 4] and column["prediction"].tolist() == [0, 0, 2, 2]
    assert [pool["reasons"][k] for k in column["reason"]] == ["selected"] * 3 + ["not_drawn"]
    assert pool["scale"] == 1 and pool["classes"] == 3 and pool["distance"] is None
    assert "statistics" not in page.partition("<form>")[2].partition("</form>")[0]  # there are no distances


def test_explorer__has_a_sample_of_a_large_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore, "MOST", 50)
    rows = np.arange(1000)
    scores = explore.ScoredPool(rows / 1000, rows / 1000, rows % 3, rows * 0, rows, 1000)
    found = explore._sample(scores, np.array([3, 4]))
    assert {3, 4} <= {*found.tolist()} and 50 <= len(found) <= 52 and sorted({*found}) == found.tolist()


def test_filter__its_kernel_and_its_gain() -> None:
    same, mean = np.zeros((3, 3), np.float32), np.full((3, 3), 1 / 9, np.float32)
    same[1, 1] = 1
    assert [gain for _, gain in response(same)] == pytest.approx([1] * 17)
    gains = [gain for _, gain in response(mean)]
    assert gains[0] == pytest.approx(1) and min(gains) < 0.2
    sheet = drawn(np.stack([np.stack([same, -same]), np.stack([same * 0, same / 2])]))
    assert sheet.shape == (7, 7, 3)
    assert sheet[1, 1].tolist() == [29, 95, 168] and sheet[5, 1].tolist() == [194, 65, 12]  # from the second channel
    assert sheet[1, 5].tolist() == [255] * 3 and sheet[5, 5].tolist() == [142, 175, 212] and sheet[3, 0, 0] == 128


def test_page__shows_the_filter(make_selection, tmp_path: Path) -> None:
    folder = make_selection(tmp_path / "s", [0, 1], 2, channels=1)
    table = json.loads((folder / "manifest.json").read_text())
    kernel = {"kernel": [[[[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]]], "bias": [0.0], "inception_score": [2.0, 3.0]}
    del table["checksum"], table["beside"]
    write_manifest(folder, {**table, "filter": kernel})
    inspection.run(InspectConfig(folder=str(folder), out=str(tmp_path / "s.html")))
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert "<h2>Filter</h2>" in page and "gray: 1.00 at 0, 1.00 at the highest" in page


def test_page__shows_how_a_generator_made_the_images(make_selection, tmp_path: Path) -> None:
    folder = make_selection(tmp_path / "s", [0, 1] * 20, 2)
    table = json.loads((folder / "manifest.json").read_text())
    del table["checksum"], table["beside"]
    write_manifest(folder, {**table, "source": "dafl"})
    rows = [{"step": s, "one_hot": 2.0 / s, "generated_classes": 1.0 + s / 100, "learning_rate": 1} for s in (50, 100)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pictures = folder / "logs" / "pictures"
    pictures.mkdir(parents=True)
    for step in (50, 1000):
        Image.new("RGB", (8, 8), (step % 256, 0, 0)).save(pictures / f"{step:07d}-generated.png")
    (pictures / "0000060-generated.png").write_bytes(b"half")
    inspection.run(InspectConfig(folder=str(folder), out=str(tmp_path / "s.html")))
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    made = page.partition("<h2>How dafl generated the images</h2>")[2].partition("</section>")[0]
    charts = [("generated_classes", "1.5", "2"), ("one_hot", "0.04", "0.02")]
    for name, first, last in charts:
        assert f"<desc>{name} over steps: from {first} to {last}</desc>" in made
    assert re.findall(r'aria-label="(\w+)"', made) == [name for name, *_ in charts]
    assert re.findall(r"<figcaption>(step [^<]+)", made) == ["step 50", "step 1,000"]
    shown = images(made)
    assert [int(image[0, 0, 0]) for image in shown] == [50, 1000 % 256, *np.linspace(0, 39, 24).round().astype(int)]
    assert "Images that are out" not in page
