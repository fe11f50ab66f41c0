"""Options of every stage, as frozen dataclasses, and their conversion from TOML tables.

The package imports nothing large, because `--help` must be quick.
"""

from dfkd.config.stages.distill import DistillConfig
from dfkd.config.stages.pipelines import DemoConfig, RunConfig
from dfkd.config.stages.results import CompareConfig, EvaluateConfig, ExplainConfig, ExportConfig, InspectConfig
from dfkd.config.stages.samples import GenerateConfig, SelectConfig
from dfkd.config.stages.shared import ModelConfig

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
