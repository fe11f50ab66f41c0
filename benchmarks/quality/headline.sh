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
# the README anew: `python docs/make_results.py`. Networks, checkpoints and selections stay in HEADLINE_WORK (runs/headline).
# Missing images are unpacked from DFKD_SHARED (../shared). Sizes, networks and rows stand at the top of headline.py, and
# HEADLINE_NAME=VALUE changes a size. The field trains on all 50,000 images, which leaves 1,000 here for the test (0.7 points
# of noise): HEADLINE_TRAIN='$DFKD_DATA/cifar10_train40k.npz $DFKD_DATA/cifar10_heldout10k.npz'
# HEADLINE_TEST='$DFKD_DATA/cifar10_test1k.npz'.
#
# On a device machine that is lent to a session (the tool `run`; /work/.library/device/README.md). Only the checkout travels,
# 64 MiB a call, and the machine is bare: the images (142 MiB) go in three calls, with the packages that it lacks. Prepare
# here, in the repository's root (git ignores .carry/), before a machine is asked for:
#
#     mkdir -p .carry/wheels && tar cf - -C .. shared/data shared/tools | split -b 50m - .carry/part-
#     python3 -m pip wheel --no-deps -w .carry/wheels .
#     python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d .carry/wheels datasets==5.2.0 \
#         dill==0.4.1 multiprocess==0.70.19 tyro==1.0.17 docstring-parser==0.18.0 typeguard==4.6.0 tomli-w==1.2.0
#
# Then, each directly after the one before (30 idle seconds give the machine back, and a fresh one is bare again). On
# 2026-11-26 the first command ran 27 seconds after the call, and 60 MB more took 12, so that 12 of 15 minutes are left:
#
#     run(carry=[".carry/part-aa"], command="mv .carry/part-aa /tmp/; nvidia-smi")
#     run(carry=[".carry/part-ab"], command="mv .carry/part-ab /tmp/")
#     run(carry=[".carry/part-ac", ".carry/wheels"], timeout_s=600, command="mv .carry/part-ac /tmp/ &&
#         cat /tmp/part-a? | tar x -C /tmp && python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir
#         --upgrade --target /tmp/site .carry/wheels/*.whl && export PYTHONPATH=/tmp/site DFKD_DATA=/tmp/data
#         DFKD_SHARED=/tmp/shared HEADLINE_WORK=/tmp/work HEADLINE_MINUTES=10 && (OUT=/tmp/out setsid nohup
#         benchmarks/quality/headline.sh > /dev/null 2>&1 &); sleep 300; cp /tmp/out/* $OUT/; tail -n 2 /tmp/out/headline.log
#         /tmp/work/*/metrics.jsonl /tmp/work/*/runs/*/metrics.jsonl")
#     run(timeout_s=600, command="for i in `seq 70`; do sleep 5; cp /tmp/out/* $OUT/; done; tail ... as above")
#
# The script runs on between the calls (setsid), and each call brings back what there is: look at it in good time, an
# unfinished run leaves nothing. `pkill -f` in a command kills the command itself, whose own line holds the pattern.
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
