#!/usr/bin/env bash
# ResNet-34 -> ResNet-18 (3x3 stems) on CIFAR-10 with one GPU in half an hour, unattended:
#
#   1. teacher   trains on the first 40,000 CIFAR-10 images (train_teacher.py)
#   2. first     50,000 of the 100,000 pool images are selected, 40 passes over them, accuracy on the other 10,000
#   3. student   the same in as many passes as the time allows by the rate of `first`, 200 at the most
#   4. short     rows beside `first`, seed after seed, until HEADLINE_MINUTES (28) are over
#
#     DFKD_DATA=data benchmarks/quality/headline.sh
#
# What is complete is not done again, what was killed goes on: give the same command. Results go to OUT (default: out) as
# soon as there are any: headline.csv and headline-short.csv with a .json each, headline-teacher.json (its accuracy),
# headline-times.csv (the seconds of every stage), headline.log. Copy them, but for the log, to benchmarks/quality, and make
# the tables anew: `python docs/make_results.py`. Networks, checkpoints and selections stay in HEADLINE_WORK (runs/headline).
# Missing images are unpacked from DFKD_SHARED (../shared). Sizes, networks and rows stand at the top of headline.py, and
# HEADLINE_NAME=VALUE changes a size. The field trains on all 50,000 images, which leaves 1,000 here for the test (0.7 points
# of noise): HEADLINE_TRAIN='$DFKD_DATA/cifar10_train40k.npz $DFKD_DATA/cifar10_heldout10k.npz'
# HEADLINE_TEST='$DFKD_DATA/cifar10_test1k.npz'.
set -euo pipefail
cd "$(dirname "$0")/../.."
export DFKD_DATA=${DFKD_DATA:-data} OUT=${OUT:-out} PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export DFKD_CACHE=${DFKD_CACHE:-${HEADLINE_WORK:-runs/headline}/cache}
python=${PYTHON:-python3}
[ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && python=.venv/bin/python
mkdir -p "$OUT"
{
    if [ ! -e "$DFKD_DATA/pool_tiny_imagenet_32.npz" ]; then
        "$python" "${DFKD_SHARED:-../shared}/tools/unpack_data.py" "$DFKD_DATA"
    fi
    "$python" benchmarks/quality/headline.py
} 2>&1 | tee -a "$OUT/headline.log"
