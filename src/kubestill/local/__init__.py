"""Run a compiled pipeline on this machine, through Kubeflow's own local runner."""

from .containers import Containers
from .parameters import check_parameters, default_places, read_parameters, with_defaults
from .results import collect_reports, explain_failure, find_output, name_models, read_scores
from .runner import run_pipeline, typed_modules
from .tasks import Run, TaskRun

__all__ = [
    "Containers",
    "Run",
    "TaskRun",
    "check_parameters",
    "collect_reports",
    "default_places",
    "explain_failure",
    "find_output",
    "name_models",
    "read_parameters",
    "read_scores",
    "run_pipeline",
    "typed_modules",
    "with_defaults",
]
