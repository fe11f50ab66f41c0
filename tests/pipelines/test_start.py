"""What a command waits for before its first step."""

import subprocess
import sys

PROGRAM = """
import sys
from dfkd import cli
status = cli.main(sys.argv[1:]) or cli.main([*sys.argv[1:-1], sys.argv[-1] + "-2", "--source", "dafl:latent=4,width=2"])
print(*[name for name in ("torch._dynamo", "datasets", "pandas", "torchvision", "sklearn") if name in sys.modules])
sys.exit(status)
"""


def test_distill_imports_nothing_heavy_but_torch_also_with_a_generator(lab, selection, tmp_path):
    flags = ("--student", "cifar_resnet:depth=8,width=4", "--steps", "2", "--samples", selection)
    arguments = ["distill", "--teacher", lab.teacher, *map(str, flags), "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []  # each of them takes as long as torch, or longer
