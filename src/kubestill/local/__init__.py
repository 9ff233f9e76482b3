"""Run a compiled pipeline on this machine, through Kubeflow's own local runner."""

from .parameters import read_parameters
from .runner import Run, TaskRun, run_pipeline

__all__ = ["Run", "TaskRun", "read_parameters", "run_pipeline"]
