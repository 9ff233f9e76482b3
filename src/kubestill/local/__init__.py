"""Run a compiled pipeline on this machine, through Kubeflow's own local runner."""

from .containers import Containers
from .parameters import read_parameters, with_defaults
from .runner import Run, TaskRun, run_pipeline

__all__ = ["Containers", "Run", "TaskRun", "read_parameters", "run_pipeline", "with_defaults"]
