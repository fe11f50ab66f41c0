"""Options of every stage, as frozen dataclasses, and their conversion from TOML tables.

The package imports nothing large, because `--help` must be quick.
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
