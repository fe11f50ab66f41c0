"""`dfkd demo`: the whole pipeline on the data of scikit-learn, offline.

A convolutional teacher learns the 8x8 handwritten digits, which are then discarded. The pool has patches of many
scales, cut from the two photographs that scikit-learn ships. It has nine times as much junk (`dfkd.app.heaps`).
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import nn

from dfkd.app import heaps, junk
from dfkd.config import DemoConfig, RunConfig, SelectConfig
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.files import output_path, replacing, write_json, write_text
from dfkd.system.portable import portable

SIDE = 16
POOL_IMAGES = 20_000
PATCHES, SINGLES = 0.1, 50
"""Share of patches in the pool, and number of further patches from which the junk's textures are cut."""
SELECTED = 2_000
TEACHER = "cifar_resnet:depth=8,width=16,num_classes=10,in_channels=1"
STUDENT = "cifar_resnet:depth=8,width=8"
NORMALIZE = "0.5/0.5"
GENERATOR, GENERATED = "deepinversion:steps=50", 256
"""Method and number of the images that are made from the teacher alone, in two batches."""
SELECTIONS = {"random": "random", "confident": "confidence", "ours": SelectConfig.method}
MARK, KINDS = "demo.json", "pool-kinds.npz"


def digits() -> tuple[UInt8[np.ndarray, "images 16 16 1"], Int[np.ndarray, " images"]]:
    """Return the 1,797 handwritten digits, scaled from 8x8 to 16x16 pixels, and their classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    small = torch.from_numpy(found.images).float()[:, None] * (255 / 16)
    large = F.interpolate(small, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return large.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy(), found.target.astype(np.int64)


def patches(count: int, seed: int = 0) -> UInt8[np.ndarray, "count 16 16 1"]:
    """Cut square gray patches of 8 to 256 pixels from two photographs, resized to 16x16, stretched to full contrast."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(photo).convert("L") for photo in load_sample_images().images]
    rng = np.random.default_rng(seed)
    out = np.empty((count, SIDE, SIDE, 1), dtype=np.uint8)
    for i in range(count):
        photo = photos[rng.integers(len(photos))]
        side = int(np.exp(rng.uniform(np.log(8), np.log(256))))  # all scales are equally frequent
        left, top = rng.integers(photo.width - side), rng.integers(photo.height - side)
        box = (float(left), float(top), float(left + side), float(top + side))
        patch = np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box), dtype=np.float32)
        low, high = patch.min(), patch.max()
        out[i, :, :, 0] = np.round((patch - low) * (255 / max(high - low, 1)))
    return out


def heap(count: int) -> heaps.Heap:
    """Return gray patches of photographs among junk. The text of the junk has only letters, so it shows no digits."""
    photos = patches(round(PATCHES * count) + SINGLES).repeat(3, axis=-1)
    found = heaps.heap(photos[SINGLES:], photos[:SINGLES], count, seed=0, characters=junk.LETTERS)
    gray = np.rint(found.images @ np.array([0.299, 0.587, 0.114], dtype=np.float32))
    return replace(found, images=gray.astype(np.uint8)[..., None])


def train_teacher(
    images: UInt8[np.ndarray, "images side side 1"], labels: Int[np.ndarray, " images"], epochs: int = 12
) -> nn.Module:
    """Train a small ResNet on labeled images. Nothing else of `dfkd` learns from labels."""
    from dfkd.data.images.augment import crop_and_flip
    from dfkd.data.images.normalize import Preprocess, parse_normalize
    from dfkd.models import cifar_resnet
    from dfkd.training.optim import learning_rate, make_optimizer, set_rate

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    teacher = cifar_resnet(depth=8, width=16, num_classes=10, in_channels=1)
    optimizer = make_optimizer([teacher], "sgd", 5e-4)
    preprocess = Preprocess(*parse_normalize(NORMALIZE, 1))
    pixels, classes, batch = torch.from_numpy(images), torch.from_numpy(labels), 64
    steps = epochs * len(pixels) // batch
    for step in range(steps):
        set_rate(optimizer, learning_rate(step, steps, peak=0.1, warmup=0.3))
        rows = torch.randint(len(pixels), (batch,), generator=generator)
        view = preprocess(crop_and_flip(pixels[rows], 1, False, generator))
        loss = F.cross_entropy(teacher(view), classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return teacher.eval()


def prepare(folder: Path) -> None:
    """Write the demo's pool, held-out digits and teacher to `folder`, unless they exist."""
    prepare_teacher(folder)
    if not (folder / "pool.npz").exists():
        say(f"making a pool of {POOL_IMAGES:,} images: one patch of a photograph for nine images of junk")
        pool = heap(POOL_IMAGES)
        save(folder / KINDS, lambda: {"names": np.array(heaps.KINDS), "kind": pool.kind})
        save(folder / "pool.npz", lambda: {"images": pool.images})


def prepare_teacher(folder: Path) -> None:
    """Write the held-out digits and the teacher, unless they exist."""
    from safetensors.torch import save_file

    images, labels = digits()
    held_out = np.random.default_rng(0).random(len(images)) < 0.4
    save(folder / "heldout.npz", lambda: {"images": images[held_out], "labels": labels[held_out]})
    if not (folder / "teacher.safetensors").exists():
        say("training the demo's teacher on handwritten digits; then the digits are discarded")
        teacher = train_teacher(images[~held_out], labels[~held_out])
        with replacing(folder / "teacher.safetensors") as partial:
            save_file(teacher.state_dict(), partial)


def save(path: Path, arrays: Callable[[], dict[str, np.ndarray]]) -> None:
    """Write an .npz file, unless it exists."""
    if not path.exists():
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays())


def options(folder: Path) -> dict[str, Any]:
    """Return the options that all rows share: teacher, preprocessing, pool, student and test images."""
    return {
        "teacher": f"{TEACHER}@{folder / 'teacher.safetensors'}",
        "normalize": NORMALIZE,
        "image_size": SIDE,
        "pool": [str(folder / "pool.npz")],
        "student": STUDENT,
        "test": str(folder / "heldout.npz"),
    }


def pipeline_text(folder: Path, seeds: int, steps: int) -> str:
    """Return the demo's pipeline file: three selections and generated images, distilled in the same way."""
    made = [*SELECTIONS, "generated"]
    tables = {
        "out": str(folder),
        "seeds": list(range(seeds)),
        "defaults": {**options(folder), "count": SELECTED, "steps": steps},
        "select": {name: {"method": method} for name, method in SELECTIONS.items()},
        "generate": {"generated": {"method": GENERATOR, "count": GENERATED}},
        "distill": {name: {"samples": [name]} for name in made},
    }
    return tomli_w.dumps(portable(tables))


def _patches_selected(folder: Path, seeds: int) -> str:
    """Return the percentage of photograph patches among the selected images of all seeds, by selection."""
    with np.load(folder / KINDS, allow_pickle=False) as kinds:
        kind = kinds["kind"]
    shares = {}
    for name in SELECTIONS:
        files = [folder / "samples" / f"{name}-seed{seed}" / "scores.parquet" for seed in range(seeds)]
        selected = np.sum([heaps.kinds_of(file, kind) for file in files], axis=0)
        shares[name] = selected[0] / selected.sum()
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


def run(config: DemoConfig) -> None:
    """Prepare, select, distill, evaluate and compare. Work that is complete is not repeated."""
    from dfkd.app import pipeline

    output_path(config.out)
    folder = Path(config.out)
    request = {"seeds": config.seeds, "steps": config.steps, "pool": POOL_IMAGES}
    mark = folder / MARK
    if mark.exists() and json.loads(mark.read_text(encoding="utf-8")) != request:
        others = "with other --seeds or --steps, or of another version"
        raise RequestError(f"--out {folder} holds a demo {others}; give another folder")
    if not mark.exists() and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"--out {folder} holds files that are not a demo; give another folder")
    write_json(mark, request)
    prepare(folder)
    file = folder / "demo.toml"
    write_text(file, pipeline_text(folder, config.seeds, config.steps))
    report = pipeline.run(RunConfig(file=str(file)), brief=True)
    say("")
    say(f"patches:         {_patches_selected(folder, config.seeds)}, of those selected; {PATCHES:.0%} of the pool")
    say(f"the report:      {report}")
    say(f"the selections:  {folder}/samples; look at one: dfkd inspect {folder}/samples/ours-seed0 --out ours.html")
    say(f"the runs:        {folder}/runs; each is a MODEL:")
    say(f"                 dfkd evaluate --model {folder}/runs/ours-seed0 --data {folder}/heldout.npz")
    say(f"the pipeline:    {file}; copy it, change it, and: dfkd run FILE.toml --out FOLDER")
    say("next:            your own teacher and photos: the README's quickstart")
