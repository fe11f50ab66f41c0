#!/usr/bin/env bash
# ResNet-34 -> ResNet-18 (3x3 stems) on CIFAR-10 with one GPU in half an hour, unattended:
#
#   1. teacher   trains on the first 40,000 CIFAR-10 images (train_teacher.py)
#   2. first     selects 50,000 of the 100,000 pool images, trains 40 passes, and tests on the other 10,000 images
#   3. student   the same with as many passes as the time allows at the speed of `first`, at most 200
#   4. short     rows beside `first`, seed after seed, until HEADLINE_MINUTES (28) are over
#
#     DFKD_DATA=data benchmarks/quality/headline.sh
#
# Rerun the same command to resume: it skips complete work. Results go to OUT (default: out) as soon as they exist:
# headline.csv and headline-short.csv with a .json each, headline-teacher.json (the teacher's accuracy), headline-times.csv
# (the seconds of every stage), headline.log. Copy all but the log to benchmarks/quality/results, and update the tables:
# `python docs/make_results.py`. Networks, checkpoints and selections stay in HEADLINE_WORK (runs/headline). images.py makes
# the files in DFKD_DATA. Sizes, networks and rows are defined at the top of headline.py, and
# HEADLINE_NAME=VALUE changes a size. Published results train on all 50,000 images. That leaves 1,000 images for the test
# here (0.7 points of noise): HEADLINE_TRAIN='$DFKD_DATA/cifar10_train40k.npz $DFKD_DATA/cifar10_heldout10k.npz'
# HEADLINE_TEST='$DFKD_DATA/cifar10_test1k.npz'.
set -euo pipefail
cd "$(dirname "$0")/../.."
export DFKD_DATA=${DFKD_DATA:-data} OUT=${OUT:-out} PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export DFKD_CACHE=${DFKD_CACHE:-${HEADLINE_WORK:-runs/headline}/cache}
python=${PYTHON:-python3}
[ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && python=.venv/bin/python
mkdir -p "$OUT"
"$python" benchmarks/quality/headline.py 2>&1 | tee -a "$OUT/headline.log"
