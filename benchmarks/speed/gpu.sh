#!/usr/bin/env bash
# The speed tables of a GPU, with the paper's pair of networks and random weights: select and distill against bare loops,
# torch.compile, and the decoding of JPEG files on the GPU. It runs unattended for a few minutes and needs no data.
# Results go to OUT (default: .).
#
#     bash benchmarks/speed/gpu.sh
#
# Not run on a GPU yet.
set -euo pipefail
here=$(dirname "$0")
out=${OUT:-.}
images=${IMAGES:-100000}
steps=${STEPS:-50}
teacher=${TEACHER:-resnet34_small}
student=${STUDENT:-resnet18_small}
python "$here/selecting.py" "$out/selecting-gpu.json" "$images" 0 "$teacher"
python "$here/distilling.py" "$out/distilling-gpu.json" "$steps" "$teacher" "$student"
python "$here/decoding.py" "$out/decoding-gpu.json" 256 nvjpeg
python "$here/compiled.py" "$out/compiled-gpu.json" "$teacher" "$student"
