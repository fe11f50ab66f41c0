"""The tasks of photographs: their tars hold no background, and their pipelines are pipelines."""

import io
import tarfile

import pytest

from dfkd.app.pipeline_file import read_pipeline


def write_tar(path, classes):
    with tarfile.open(path, "w") as tar:
        for number, label in enumerate(classes):
            for end, data in (("jpg", b"photo"), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number:04d}.{end}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_copy_labeled__leaves_out_the_background(tmp_path, script):
    write_tar(tmp_path / "one.tar", [3, -1, 0])
    write_tar(tmp_path / "two.tar", [-1])
    assert script("photos").copy_labeled([tmp_path / "one.tar", tmp_path / "two.tar"], tmp_path / "out.tar") == 2
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert tar.getnames() == ["0000.jpg", "0000.cls", "0002.jpg", "0002.cls"]


@pytest.mark.parametrize("task", ["a", "b"])
def test_pipelines__have_the_rows_of_the_page(script, monkeypatch, task):
    photos = script("photos")
    monkeypatch.setenv("DFKD_PHOTOS", "photos")
    monkeypatch.setenv("DFKD_DATA", "data")
    pipeline = read_pipeline(photos.Path(photos.__file__).with_name(f"photos-{task}.toml"))
    names = {one.name for one in pipeline.distillations}
    assert names == {
        f"{student}-{row}-{steps}"
        for student in ("half", "mobilenet")
        for row in ("random-kd", "defaults")
        for steps in (500, 2000)
    }
