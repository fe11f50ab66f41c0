"""What the tables of README.md and docs/results.md show. `make_results.py` makes them.

A table is one entry of TABLES: a title, a heading if it is the first of a group, and the comparisons whose rows it
shows (NAME.csv, and NAME.json that says what they were measured on; benchmarks/quality/keep.py writes both). ROWS says
in words what a row was; its name may end in its steps. CURVES and SUMMARY name the runs of each line.
"""

PAPERS = "`kd explicit:0.5 relation:1`"
CONFIDENT = "the most confident, evenly over classes"
FIFTY = "50,000 of the 100,000 images, unless stated"
BEGUN = "`--init teacher`"
WINDOWS = "`--crop-area 0.4`"
FILTERED = "the filtered pool"
DEFAULT = "`statistics`, the default, of the filtered pool"
ROWS = {
    "random-kd": "random; `kd`",
    "random-ofd": "random; `kd ofd`",
    "dfnd": "the most confident; `kd noise`, as in DFND",
    "confident-kd": f"{CONFIDENT}; `kd`",
    "confident": f"{CONFIDENT}; {PAPERS}",
    "confident-ofd": f"{CONFIDENT}; `kd ofd`",
    "confident-ofd-features": f"{CONFIDENT}; `kd ofd explicit:0.5 relation:1`",
    "threshold-ofd": "`threshold:draw=entropy`; `kd ofd`",
    "confident-bucket": f"{CONFIDENT}; {PAPERS} `--class-dropping 0.05`",
    "threshold": f"`threshold:draw=entropy`, our reading of the paper; {PAPERS}",
    "threshold-balanced": f"`threshold:draw=entropy`, evenly over classes; {PAPERS}",
    "ours": f"{CONFIDENT}; `kd ofd`; {BEGUN}",
    "confident-ofd-init": f"{CONFIDENT}; `kd ofd`; {BEGUN}",
    "confident-ofd-init-fast": f"{CONFIDENT}; `kd ofd`; {BEGUN}, `--lr 0.4`",
    "random-kd-init": f"random; `kd`; {BEGUN}",
    "most-confident-kd": "the most confident; `kd`",
    "confident-kd-init": f"{CONFIDENT}; `kd`; {BEGUN}",
    "confident-features-init": f"{CONFIDENT}; {PAPERS}; {BEGUN}",
    "random-ofd-init": f"random; `kd ofd`; {BEGUN}",
    "threshold-ofd-init": f"`threshold:draw=entropy`; `kd ofd`; {BEGUN}",
    "confident-ofd-init-cutmix": f"{CONFIDENT}; `kd ofd`; {BEGUN}, `--cutmix 1`",
    **{f"confident-{n}-ofd-init": f"{int(n):,}, {CONFIDENT}; `kd ofd`; {BEGUN}" for n in ("5000", "10000", "20000")},
    "confident-10000-ofd-init-area": f"10,000, {CONFIDENT}; `kd ofd`; {BEGUN}, {WINDOWS}",
    "confident-ofd-init-area": f"{CONFIDENT}; `kd ofd`; {BEGUN}, {WINDOWS}",
    "confident-ofd-init-wider": f"{CONFIDENT}; `kd ofd`; {BEGUN}, `--crop-area 0.2`",
    "confident-ofd-init-area-strong": f"{CONFIDENT}; `kd ofd:0.003`; {BEGUN}, {WINDOWS}",
    "confident-ofd-init-area-weak": f"{CONFIDENT}; `kd ofd:0.0001`; {BEGUN}, {WINDOWS}",
    "confident-kd-area-further": f"{CONFIDENT}; `kd`, `--lr 0.02`, {WINDOWS}; continues `...-area-16000`",
    "private-kd-further": "the teacher's own 40,000 images; `kd`, `--lr 0.02`; continues the same run",
    "random-ofd-init-area": f"random; `kd ofd`; {BEGUN}, {WINDOWS}",
    "threshold-ofd-init-area": f"`threshold:draw=entropy`; `kd ofd`; {BEGUN}, {WINDOWS}",
    "random-10000-ofd-init-area": f"10,000, random; `kd ofd`; {BEGUN}, {WINDOWS}",
    "threshold-10000-ofd-init-area": f"10,000, `threshold:draw=entropy`; `kd ofd`; {BEGUN}, {WINDOWS}",
    "threshold-random-10000-ofd-init-area": (
        f"10,000 of the 70,000 most confident, at random; `kd ofd`; {BEGUN}, {WINDOWS}"
    ),
    "threshold-surer-10000-ofd-init-area": (
        f"10,000 of the 30,000 most confident, at random, evenly over classes; `kd ofd`; {BEGUN}, {WINDOWS}"
    ),
    "far-ofd-init-area": f"{CONFIDENT}, of photos of none of CIFAR-10's classes; `kd ofd`; {BEGUN}, {WINDOWS}",
    "confident-kd-init-area": f"{CONFIDENT}; `kd`; {BEGUN}, {WINDOWS}",
    "confident-ofd-area": f"{CONFIDENT}; `kd ofd`; {WINDOWS}",
    "random-kd-area": f"random; `kd`; {WINDOWS}",
    "statistics-ofd-init": f"{DEFAULT}; `kd ofd`; {BEGUN}",
    "filtered-ofd-init": f"{CONFIDENT}, of {FILTERED}; `kd ofd`; {BEGUN}",
    "filtered-10000-ofd-init": f"10,000, {CONFIDENT}, of {FILTERED}; `kd ofd`; {BEGUN}",
    "filtered-random-ofd-init": f"random, of {FILTERED}; `kd ofd`; {BEGUN}",
    "filtered-random-kd": f"random, of {FILTERED}; `kd`",
    "filtered-far-ofd-init": f"{CONFIDENT}, filtered, of photos of none of CIFAR-10's classes; `kd ofd`; {BEGUN}",
    "filtered-ofd-init-area": f"{CONFIDENT}, of {FILTERED}; `kd ofd`; {BEGUN}, {WINDOWS}",
    "filtered-all-ofd-init": f"all 100,000, of {FILTERED}; `kd ofd`; {BEGUN}",
    "filtered-random-10000-ofd-init": f"10,000, random, of {FILTERED}; `kd ofd`; {BEGUN}",
    "filtered-threshold-10000-ofd-init": f"10,000, `threshold:draw=entropy`, of {FILTERED}; `kd ofd`; {BEGUN}",
    "filtered-kd-init": f"{CONFIDENT}, of {FILTERED}; `kd`; {BEGUN}",
    "filtered-ofd-init-mixup": f"{CONFIDENT}, of {FILTERED}; `kd ofd`; {BEGUN}, `--mixup 1`",
    "filtered-ofd-init-uncropped": f"{CONFIDENT}, of {FILTERED}; `kd ofd`; {BEGUN}, `--crop-padding 0`",
    "filtered-ofd-init-light": f"{CONFIDENT}, of {FILTERED}; `kd ofd`; {BEGUN}, `--weight-decay 0.0001`",
    "filtered-ofd-init-dropping": f"{CONFIDENT}, of {FILTERED}; `kd ofd`; {BEGUN}, `--class-dropping 0.05`",
    "filtered-ofd-init-cooler": f"{CONFIDENT}, of {FILTERED}; `kd:temperature=2 ofd`; {BEGUN}",
    "filtered-ofd-init-hotter": f"{CONFIDENT}, of {FILTERED}; `kd:temperature=8 ofd`; {BEGUN}",
    "blurred-ofd-init": f"{CONFIDENT}, of the pool blurred by `blur:sigma=0.5`; `kd ofd`; {BEGUN}",
    "random-10000-ofd-init": f"10,000, random; `kd ofd`; {BEGUN}",
    "private-ofd-init": f"the teacher's own 40,000 images; `kd ofd`; {BEGUN}",
}
TREES = {
    f"{kind}-{source}": f"{words}, from {what}"
    for kind, words in (("tree", "a tree"), ("network", "a network"))
    for source, what in (
        ("labels", "labels"),
        ("teacher", "the teacher"),
        ("teacher-further", "the teacher, 7,000 steps more"),
        ("teacher-freer", "the teacher, 7,000 steps more and 2,500 with `penalty=0.01`"),
        ("teacher-shifted", "the teacher, on shifted digits"),
        ("photographs", "the teacher, on patches of photographs"),
    )
}
PAIR = {
    "random-kd": "random; `kd`, random weights",
    "dfnd": "the most confident; `kd noise`, random weights, as in DFND",
    "paper": "`--preset paper`, shortened",
    "random": "random; the defaults of `distill`",
    "defaults": "the defaults",
}
TABLES = [
    {
        "heading": "CIFAR-10",
        "title": f"{FIFTY}; losses",
        "files": [
            *("cifar10-2000-steps", "selection-2000-steps", "ofd-2000-steps", "init-2000-steps", "begun-2000-steps"),
            *("area-2000-steps", "filter-2000-steps", "filter-options-2000-steps"),
        ],
    },
    {"title": "50,000 of the 100,000 images; the defaults of `select` and `distill`", "files": ["defaults"]},
    {"title": f"{FIFTY}; losses; 500 steps", "files": ["begun-500-steps"]},
    {
        "title": f"{FIFTY}; losses; 500 steps, with and without random resized crops",
        "files": ["area-500-steps", "ofd-weight-500-steps", "threshold-500-steps"],
    },
    {
        "title": f"{FIFTY}; losses; 500 steps, with a pool filter",
        "files": ["filter-500-steps", "filter-options-500-steps"],
    },
    {
        "title": "50,000 of the 100,000 images; losses; 4,000 steps",
        "files": [
            *("steps-4000", "steps-4000-intel", "random-4000-steps", "filter-4000-steps"),
            "filter-options-4000-steps",
        ],
    },
    {
        "title": "50,000 of the 100,000 images; losses; 16,000 steps",
        "files": ["filter-16000-steps", "area-16000-steps", "steps-16000"],
    },
    {"title": f"{FIFTY}; losses; 1,000 steps more, after 16,000", "files": ["further-1000-steps"]},
    {
        "title": "10,000 photos, half of them blurred, all selected; 500 steps of the defaults",
        "files": ["pool-parts-500-steps"],
        "rows": {
            "two-filters": "a selection and a filter for each half",
            "one-filter": "one selection with one filter",
        },
    },
    {
        "title": "teachers; 50,000 random images without a filter, 1,000 steps of the defaults",
        "files": ["teachers-cifar10"],
        "rows": {
            "one": "one teacher",
            "two": "two: the same and one of 91.6 %",
            "three": "three: the two and one of 84.6 %",
        },
    },
    {
        "title": "10,000 images of a scraped pool of 100,000, a fifth of them photos; 500 steps of the defaults",
        "files": ["heap-20-500-steps"],
        "rows": {
            "heap-20-statistics": "`statistics`",
            "heap-20-threshold": "`threshold`",
            "heap-20-pixels": "`statistics` with `--deduplicate-pixels 0.95`",
            "heap-20-random": "random",
            "heap-20-clean": "random, of the 20,000 photos alone",
            "photos-statistics": "`statistics`, of the 20,000 photos alone",
        },
    },
    {
        "title": "10,000 images of the same scraped pool; 2,000 steps of the defaults",
        "files": ["heap-20-2000-steps"],
        "rows": {
            "statistics": "`statistics`",
            "random": "random",
            "clean": "random, of the 20,000 photos alone",
        },
    },
    {
        "title": "the same pool with another teacher, a ResNet-56 of width 16; 500 steps, on 1,000 test images",
        "files": ["resnet56-heap-20-500-steps"],
        "rows": {"resnet56-heap-20-statistics": "`statistics`", "resnet56-heap-20-random": "random"},
    },
    {
        "title": "10,000 images of the pool of photos alone; 500 steps of the defaults",
        "files": ["clean-pool-500-steps"],
        "rows": {"statistics": "`statistics`", "random": "random"},
    },
    {
        "title": "50,000 images of the pool of photos alone; 1,000 steps of the defaults",
        "files": ["clean-pool-1000-steps"],
        "rows": {"statistics": "`statistics`", "threshold": "`threshold`", "random": "random"},
    },
    {
        "title": "50,000 images of the pool of photos alone; 4,000 steps of the defaults",
        "files": ["clean-pool-4000-steps"],
        "rows": {
            "statistics": "`statistics`",
            "threshold": "`threshold`",
            "random": "random",
            "statistics-half": "`statistics`, with a filter of the nearest half of the pool",
            "random-tenth": "random, with the filter of `statistics`",
        },
    },
    {
        "title": "2,000 images of a scraped pool of 100,000, 2 % of them photos; 500 steps of the defaults",
        "files": ["heap-2-500-steps"],
        "rows": {
            "clean": "random, of the 2,000 photos alone",
            "heap-2-pixels": "`statistics` with `--deduplicate-pixels 0.95`",
            "statistics": "`statistics`",
            "random": "random",
        },
    },
    {
        "title": "the teacher of CIFAR-10; a student with weights of 100 other classes; 10,000 images; 500 steps",
        "files": ["given-500-steps"],
        "rows": {
            "given-kdofd-sgd-classifier": "`kd ofd`, SGD, 0.1, the fitted classifier: the defaults",
            "given-kdofd-sgd": "`kd ofd`, SGD, 0.1, a random classifier",
            "given-kd-adamw-classifier": "`kd`, AdamW, 0.0001, BatchNorm statistics kept, the fitted classifier",
            "given-kdofd-adamw": "`kd ofd`, AdamW, 0.0005, BatchNorm statistics kept, a random classifier",
        },
    },
    {
        "heading": "Photographs",
        "title": "photographs at 96 pixels: a teacher of STL-10, 4,500 photos of Caltech-101, 500 steps of 32",
        "files": ["photos-a-500-steps"],
        "rows": {
            "half-random-kd": "half of the teacher's channels; random photos, `kd`, random weights",
            "half-defaults": "half of the teacher's channels; the defaults",
            "mobilenet-random-kd": "`mobilenet_v3_small`; random photos, `kd`",
            "mobilenet-defaults": "`mobilenet_v3_small`; the defaults",
        },
    },
    {
        "title": "photographs at 128 pixels: a teacher of Caltech-101, 2,500 photos of STL-10, 500 steps of 32",
        "files": ["photos-b-500-steps"],
        "rows": {
            "half-random-kd": "half of the teacher's channels; random photos, `kd`, random weights",
            "half-defaults": "half of the teacher's channels; the defaults",
        },
    },
    {
        "heading": "Digits and MNIST",
        "title": "digits: 2,000 of the demo's 20,000 images, a tenth of them patches; 150 steps of the defaults",
        "files": ["heap-digits"],
        "rows": {
            "statistics": "`statistics`",
            "statistics-weight-0.5": "`statistics:weight=0.5`",
            "statistics-deduplicate-pixels-0.95": "`statistics` with `--deduplicate-pixels 0.95`",
            "threshold": "`threshold`",
            "clean": "the patches alone",
            "random": "random",
            "confidence": "the most confident",
        },
    },
    {
        "title": "digits: what is added to `kd`; 5,000 random patches, random weights",
        "files": ["students-digits"],
        "rows": {
            "kd-twice-the-steps": "nothing, twice the steps",
            "kd": "nothing",
            "kd-byot": "`byot`",
            "kd-cskd": "`cskd`, each class twice in a batch",
            "kd-ddgsd": "`ddgsd:flip=false`",
            "kd codistillation": "`codistillation:burn_in=20`, one of two students",
            "kd dml": "`dml:hard=0`, one of two students",
            "kd graft": "`--graft 20`, one of two students of rates 0.4 and 0.2",
        },
    },
    {
        "title": "digits: one teacher and several, each trained on a third of the digits, or on six of them",
        "files": ["teachers-digits"],
        "rows": {
            "one": "one teacher",
            "two": "two, `mean-logits`",
            "three": "three, `mean-logits`",
            **{f"three-{way}": f"three, `{way}`" for way in ("mean-probabilities", "confidence", "entropy", "learned")},
            **{
                f"halves-{way}": f"two of six digits each, `{way}`"
                for way in ("mean-logits", "mean-probabilities", "confidence", "entropy", "learned")
            },
        },
    },
    {
        "title": "digits: specialists, and the student trained further; 5,000 random patches, random weights",
        "files": ["specialists-digits"],
        "rows": {
            "generalist": "the generalist, 400 steps",
            "specialists": "`--specialists 3`, which found two groups, 100 steps more",
            "further-equal-steps": "`kd`, 100 steps more",
            "further-equal-time": "`kd`, 400 steps more",
        },
    },
    {
        "title": "digits: soft decision trees of depth 6, and networks",
        "files": ["trees-digits"],
        "rows": TREES,
    },
    {"title": "MNIST: soft decision trees of depth 8 beside networks", "files": ["trees-mnist"], "rows": TREES},
    {
        "title": "digits: 5,000 of 20,000 patches of photographs; 400 steps of the defaults",
        "files": ["digits-selection"],
        "rows": {
            "random": "random",
            "random-balanced": "random, evenly over classes",
            "entropy": "`threshold:draw=entropy`",
            "entropy-balanced": "`threshold:draw=entropy`, evenly over classes",
            "floor": "`threshold:draw=random`: of the most confident 70 %, at random",
            "floor-balanced": "of the most confident 70 %, at random, evenly over classes",
            "surer-balanced": "of the most confident half, at random, evenly over classes",
            "confident-balanced": CONFIDENT,
        },
    },
    {
        "title": "digits: with and without a filter, with another training of the teacher",
        "files": ["digits-filter"],
        "rows": {
            "random": "random",
            "confident-balanced": CONFIDENT,
            "filtered-random": f"random, of {FILTERED}",
            "filtered-confident": f"{CONFIDENT}, of {FILTERED}",
        },
    },
    {
        "heading": "100 classes of Tiny-ImageNet",
        "title": "100 classes of Tiny-ImageNet; half of the photos of its 100 others, and losses",
        "files": ["tiny100", "tiny100-500-steps"],
        "rows": ROWS
        | {
            "confident-kd": "the most confident; `kd`",
            "balanced-kd-ofd": f"{CONFIDENT}; `kd ofd`",
            "confident-ofd-init-uncropped": f"{CONFIDENT}; `kd ofd`; {BEGUN}, `--crop-padding 0`",
            "balanced-kd-ofd-area": f"{CONFIDENT}; `kd ofd`; {WINDOWS}",
        },
    },
    {
        "title": "the same teacher; half of CIFAR-10's 40,000 photos",
        "files": ["tiny100-filter"],
        "rows": {
            "cifar": f"{CONFIDENT}; `kd ofd`; {BEGUN}",
            "cifar-filtered": f"{CONFIDENT}, of {FILTERED}; `kd ofd`; {BEGUN}",
        },
    },
    {
        "title": "another teacher of 100 classes (12 passes): photos of other classes, alone and among junk",
        "files": ["tiny100-pools-500-steps"],
        "rows": {
            "statistics": "`statistics`, the default; 25,000 of 50,000 photos",
            "random": "random; 25,000 of 50,000 photos",
            "random-kd": "random; 25,000 of 50,000 photos; `kd`, random weights",
            "heap-statistics": "`statistics`; 10,000 of a scraped pool: 20,000 photos among 80,000 images of junk",
            "heap-random": "random, of the same scraped pool",
            "heap-clean": "random, of the 20,000 photos alone",
        },
    },
    {
        "title": "the same teacher: ten specialists, and the student trained further",
        "files": ["specialists-tiny100"],
        "rows": {
            "generalist": "the generalist, 1,000 steps of the defaults on random images",
            "specialists": "`--specialists 10`, 400 steps more",
            "further-equal-steps": "`kd`, 400 steps more",
        },
    },
    {
        "heading": "ResNet-34 to ResNet-18",
        "title": "ResNet-34 to ResNet-18 on two cores of a processor, 500 steps",
        "files": ["resnet34-500-steps"],
        "rows": PAIR,
    },
    {
        "title": "ResNet-34 to ResNet-18, one GPU, up to 200 passes over 50,000 images",
        "files": ["headline"],
        "rows": PAIR,
    },
    {
        "title": "ResNet-34 to ResNet-18, one GPU, 40 passes over 50,000 images",
        "files": ["headline-short"],
        "rows": PAIR,
    },
]
CURVES = {
    f"{DEFAULT}; `kd ofd`; {BEGUN}": [("defaults", f"statistics-ofd-init-{n}") for n in (500, 1000, 2000, 4000)],
    f"{CONFIDENT}, of {FILTERED}; `kd ofd`; {BEGUN}": [
        *(("filter-500-steps", "filtered-ofd-init-500"), ("filter-2000-steps", "filtered-ofd-init-2000")),
        *(("filter-4000-steps", "filtered-ofd-init-4000"), ("filter-16000-steps", "filtered-ofd-init-16000")),
    ],
    f"{CONFIDENT}; `kd ofd`; {BEGUN}, {WINDOWS}": [
        *(("area-500-steps", "confident-ofd-init-area-500"), ("area-2000-steps", "confident-ofd-init-area-2000")),
        ("area-16000-steps", "confident-ofd-init-area-16000"),
    ],
    f"{CONFIDENT}; `kd ofd`; {BEGUN}": [
        *(("begun-500-steps", "confident-ofd-init-500"), ("init-2000-steps", "confident-ofd-init-2000")),
        ("filter-4000-steps", "confident-ofd-init-4000"),
    ],
    f"random, of {FILTERED}; `kd`": [
        *(("filter-500-steps", "filtered-random-kd-500"), ("filter-2000-steps", "filtered-random-kd-2000")),
    ],
    f"random; `kd`; {BEGUN}": [("begun-500-steps", "random-kd-init-500")],
    f"{CONFIDENT}; `kd ofd`": [
        *(("convergence", "confident-ofd-500"), ("convergence", "confident-ofd-1000")),
        *(("ofd-2000-steps", "confident-ofd-2000"), ("steps-4000", "confident-ofd-4000")),
    ],
    "`threshold:draw=entropy`; `kd ofd`": [
        *(("convergence", "threshold-ofd-500"), ("ofd-2000-steps", "threshold-ofd-2000")),
    ],
    "the most confident; `kd noise`, as in DFND": [("steps-4000-intel", "dfnd-4000")],
    "random; `kd`": [
        *(("convergence", "random-kd-500"), ("losses-cifar10", "kd"), ("cifar10-2000-steps", "random-kd")),
        *(
            ("steps-4000-intel", "random-kd-4000"),
            ("random-4000-steps", "random-kd-4000"),
            ("steps-16000", "random-kd-16000"),
        ),
    ],
}
"""Accuracy against steps: the result file and the row of every point."""
SUMMARY = {
    "random images, KL divergence, random weights (`--loss kd --init none`)": CURVES["random; `kd`"],
    "selected images, with the defaults of `select` and `distill`": CURVES[f"{DEFAULT}; `kd ofd`; {BEGUN}"],
}
SUMMARY_STEPS = (500, 2000, 4000)
