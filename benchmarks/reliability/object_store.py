"""Pools in an S3 store that answers, fails and vanishes, against the same files on the disk.

    pip install 'moto[server]' s3fs
    python -m benchmarks.reliability.object_store OUT.json

A server of moto runs in its own process. `select` of tar and Parquet files from the store must give the same shards as
from the disk. A connection that is cut for some seconds must not change the result. A connection that stays cut must
end the command with one line that names the file, and the same command must resume later. A file that vanishes must be
named, too. The same is checked for `--out s3://`: the selection in the store must equal that on the disk.
"""

import contextlib
import io
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file

from dfkd.app import cli
from dfkd.models import lenet5
from dfkd.system import remote
from dfkd.system.remote_folder import _Remote, folder_of

IMAGES = 300


class Line:
    """Connection to a server that can be cut: open connections are lost, and new ones are refused."""

    def __init__(self, server_port):
        self._server_port, self._open = server_port, []
        self.port = free_port()
        self.join()

    def join(self):
        """Accept connections."""
        self._ear = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._ear,), daemon=True).start()

    def cut(self):
        """Close all connections."""
        for end in (self._ear, *self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open = []

    def _accept(self, ear):
        with contextlib.suppress(OSError):
            while True:
                near = ear.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._server_port))
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def free_port():
    """Return a port on which no process listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def served(files):
    """Start an S3 server with some files. Yields the line to the server."""
    import fsspec

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        line = Line(port)
        os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{line.port}"
        store = fsspec.filesystem("s3")
        store.mkdir("pool")
        for name, data in files.items():
            store.pipe_file(f"pool/{name}", data)
        yield line
    finally:
        server.kill()
        server.wait()


def files():
    """Return a tar and a Parquet file of the same images."""
    rng, images = np.random.default_rng(0), []
    for _ in range(IMAGES):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(data, "PNG")
        images.append(data.getvalue())
    archive, table = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for number, image in enumerate(images):
            member = tarfile.TarInfo(f"{number:05d}.png")
            member.size = len(image)
            tar.addfile(member, io.BytesIO(image))
    pq.write_table(pa.table({"image": images}), table, row_group_size=50)
    return {"x.tar": archive.getvalue(), "x.parquet": table.getvalue()}


class Trial:
    """`select` with one teacher, from a given pool to a given folder."""

    def __init__(self, folder):
        self.folder = folder
        torch.manual_seed(0)
        save_file(lenet5(num_classes=10, in_channels=3).state_dict(), folder / "teacher.safetensors")

    def select(self, pool, out, cache):
        """Run `select`. Returns the exit status and the output."""
        os.environ["DFKD_CACHE"] = str(self.folder / cache)
        teacher = f"lenet5:in_channels=3,num_classes=10@{self.folder / 'teacher.safetensors'}"
        options = ("--image-size", "32", "--filter", "none", "--method", "confidence", "--count", "100")
        said, stderr = io.StringIO(), sys.stderr
        sys.stderr = said
        try:
            status = cli.main(
                [
                    "select",
                    "--teacher",
                    teacher,
                    *options,
                    "--pool",
                    pool,
                    "--out",
                    out if "://" in out else str(self.folder / out),
                ]
            )
        finally:
            sys.stderr = stderr
        return status, said.getvalue()

    def shards(self, out):
        """Return the bytes of a selection's shards."""
        return [file.read_bytes() for file in sorted((self.folder / out).glob("data-*.arrow"))]


def check(trial, line, name, stored):
    """Return the checks of one file by name, and whether each holds."""
    import fsspec

    (trial.folder / name).write_bytes(stored)
    assert trial.select(str(trial.folder / name), f"disk-{name}", f"cache-disk-{name}")[0] == 0
    want, uri = trial.shards(f"disk-{name}"), f"s3://pool/{name}"
    assert trial.select(uri, f"s3-{name}", f"cache-s3-{name}")[0] == 0
    found = {"same_shards": trial.shards(f"s3-{name}") == want}
    line.cut()
    back = threading.Timer(3.0, line.join)
    back.start()
    status, _ = trial.select(uri, f"away-{name}", f"cache-away-{name}")
    back.join()
    found["away_for_seconds"] = status == 0 and trial.shards(f"away-{name}") == want
    line.cut()
    status, said = trial.select(uri, f"gone-{name}", f"cache-gone-{name}")
    found["away_for_good_is_named"] = status == 2 and f"{uri!r} cannot be read after" in said.splitlines()[-1]
    line.join()
    status, _ = trial.select(uri, f"gone-{name}", f"cache-gone-{name}")
    found["goes_on"] = status == 0 and trial.shards(f"gone-{name}") == want
    fsspec.filesystem("s3").rm(f"pool/{name}")
    status, said = trial.select(uri, f"none-{name}", f"cache-none-{name}")
    found["vanished_is_named"] = status == 2 and f"{uri!r} does not exist" in said
    return found


class Cut:
    """Callable that cuts a line when the first file of a result is sent, for some seconds or permanently."""

    def __init__(self, line, seconds):
        self.line, self.seconds, self.back = line, seconds, None

    def __call__(self, remote_folder, path, name):
        if self.back is None:
            self.line.cut()
            self.back = threading.Timer(self.seconds or 0.0, self.line.join if self.seconds else lambda: None)
            self.back.start()
        return SEND(remote_folder, path, name)


SEND = _Remote._send


def check_out(trial, line, stored):
    """Return the checks of a selection that is written to the store, and whether each holds."""
    import fsspec

    store = fsspec.filesystem("s3")
    pool = trial.folder / "out.tar"
    pool.write_bytes(stored)
    assert trial.select(str(pool), "disk-out", "cache-out")[0] == 0
    want = {path.name: path.read_bytes() for path in (trial.folder / "disk-out").iterdir()}

    def select(name, bucket="pool"):
        return trial.select(str(pool), f"s3://{bucket}/out/{name}", "cache-out")

    def sent(name):
        store.invalidate_cache()
        return {Path(file).name: store.cat_file(file) for file in store.find(f"pool/out/{name}")}

    found = {"same_files": select("whole")[0] == 0 and sent("whole") == want}
    cut = Cut(line, 3.0)
    _Remote._send = lambda *given: cut(*given)
    found["away_for_seconds"] = select("away")[0] == 0 and sent("away") == want
    cut_for_good = Cut(line, None)
    _Remote._send = lambda *given: cut_for_good(*given)
    status, said = select("gone")
    found["away_for_good_is_named"] = status == 2 and "cannot be written after" in said.splitlines()[-1]
    line.join()
    _Remote._send = SEND
    found["half_is_no_selection"] = "manifest.json" not in sent("gone") and bool(sent("gone"))
    found["goes_on"] = select("gone")[0] == 0 and sent("gone") == want
    status, said = select("none", bucket="none")
    found["missing_bucket_is_named"] = status == 2 and "s3://none/out/none" in said.splitlines()[-1]
    os.environ["DFKD_CACHE"] = str(trial.folder / "cache-reader")
    shutil.rmtree(trial.folder / "cache-out")
    copy = folder_of("s3://pool/out/whole")
    found["is_read"] = {path.name: path.read_bytes() for path in copy.iterdir()} == want
    return found


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    stored = files()
    with tempfile.TemporaryDirectory() as folder, served(stored) as line:
        trial = Trial(Path(folder))
        found = {name: check(trial, line, name, data) for name, data in stored.items()}
        found["--out"] = check_out(trial, line, stored["x.tar"])
    result = {
        "command": "benchmarks/reliability/object_store.py",
        "date": str(date.today()),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "tries": remote.TRIES,
    }
    Path(sys.argv[1]).write_text(json.dumps({**result, "files": found}, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    if not all(held for checks in found.values() for held in checks.values()):
        sys.exit("not all held")


if __name__ == "__main__":
    main()
