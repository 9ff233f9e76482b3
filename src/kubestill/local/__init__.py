"""Run a compiled pipeline on this machine, through Kubeflow's own local runner."""

from .containers import Containers
from .parameters import read_parameters, with_defaults
from .runner import run_pipeline
from .tasks import Run, TaskRun

__all__ = ["Containers", "Run", "TaskRun", "read_parameters", "run_pipeline", "with_defaults"]
