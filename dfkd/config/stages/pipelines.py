"""Options of the stages `run` and `demo`, which run other stages."""

from dataclasses import dataclass

from dfkd.config.option import Checked, option
from dfkd.config.stages.shared import Engine


@dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
    """Run a pipeline of selections, distillations, seeds and a comparison. Complete stages are skipped."""

    file: str = option("FILE.toml of the pipeline.", "data", positional=True)
    out: str | None = option("Folder of the pipeline, instead of `out` in the file.", "output", default=None)
    only: tuple[str, ...] = option(
        "Rows to run, with the selections that they need. Default: all. The report has every complete row.",
        "data",
        default=(),
    )
    engine: Engine = option(
        "local: one stage after the other. ray: the stages as tasks of Ray, on the cluster that RAY_ADDRESS names, "
        "else on this machine. Needs pip install '.[ray]'.",
        "machine",
        default="local",
    )
    cpus_per_stage: float = option("Cores that Ray reserves for a stage.", "machine", default=1.0, above=0)
    gpus_per_stage: float | None = option(
        "GPUs that Ray reserves for a stage, such as 0.5. Default: 1 where there are GPUs, else 0.",
        "machine",
        default=None,
        least=0,
    )


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Checked):
    """Select, generate, distill and compare on images that come with scikit-learn, offline, in a few minutes."""

    out: str = option("Folder of everything that the demo writes.", "output", default="demo")
    seeds: int = option("Number of seeds per row.", "training", default=2, least=1)
    steps: int = option("Optimizer steps per run.", "training", default=150, least=1)
