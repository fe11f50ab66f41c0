"""The options of every stage: one frozen dataclass a stage, and TOML tables that become one.

Nothing heavy is imported here: `--help` must be quick.
"""

from dfkd.config.stages import (
    CompareConfig,
    DemoConfig,
    DistillConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    GenerateConfig,
    InspectConfig,
    ModelConfig,
    RunConfig,
    SelectConfig,
)

__all__ = [
    "CompareConfig",
    "DemoConfig",
    "DistillConfig",
    "EvaluateConfig",
    "ExplainConfig",
    "ExportConfig",
    "GenerateConfig",
    "InspectConfig",
    "ModelConfig",
    "RunConfig",
    "SelectConfig",
]
