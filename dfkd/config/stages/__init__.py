"""Options of every stage: one frozen dataclass per stage, and one declaration per option."""

from dfkd.config.stages.distill import DistillConfig
from dfkd.config.stages.pipelines import DemoConfig, RunConfig
from dfkd.config.stages.results import CompareConfig, EvaluateConfig, ExplainConfig, ExportConfig, InspectConfig
from dfkd.config.stages.samples import GenerateConfig, SelectConfig
from dfkd.config.stages.shared import Decoder, Engine, Interpolation, Logger, Mixing, ModelConfig, Precision

__all__ = [
    "CompareConfig",
    "Decoder",
    "DemoConfig",
    "DistillConfig",
    "Engine",
    "EvaluateConfig",
    "ExplainConfig",
    "ExportConfig",
    "GenerateConfig",
    "InspectConfig",
    "Interpolation",
    "Logger",
    "Mixing",
    "ModelConfig",
    "Precision",
    "RunConfig",
    "SelectConfig",
]
