"""Run a compiled pipeline on this machine, through Kubeflow's own local runner."""

from .containers import Containers
from .parameters import check_parameters, default_places, read_parameters, with_defaults
from .records import RunRecord, find_record, list_records
from .results import explain_failure, find_output, read_scores, scores_of_models
from .runner import run_pipeline, typed_modules
from .tasks import LocalRun, TaskRun

__all__ = [
    "Containers",
    "LocalRun",
    "RunRecord",
    "TaskRun",
    "check_parameters",
    "default_places",
    "explain_failure",
    "find_output",
    "find_record",
    "list_records",
    "read_parameters",
    "read_scores",
    "run_pipeline",
    "scores_of_models",
    "typed_modules",
    "with_defaults",
]
