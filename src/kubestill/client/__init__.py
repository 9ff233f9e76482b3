"""Kubeflow from the outside: upload, run, schedule, check."""

from kubestill.client.api import Api
from kubestill.client.runs import follow_run, get_run, list_runs, start_run, stop_run
from kubestill.client.schedules import (
    Schedule,
    check_arguments,
    list_schedules,
    put_schedule,
    remove_schedule,
    set_paused,
)
from kubestill.client.server import check_server
from kubestill.client.settings import Connection, read_connection
from kubestill.client.triggers import Trigger, read_trigger
from kubestill.client.versions import Version, ensure_version

__all__ = [
    "Api",
    "Connection",
    "Schedule",
    "Trigger",
    "Version",
    "check_arguments",
    "check_server",
    "ensure_version",
    "follow_run",
    "get_run",
    "list_runs",
    "list_schedules",
    "put_schedule",
    "read_connection",
    "read_trigger",
    "remove_schedule",
    "set_paused",
    "start_run",
    "stop_run",
]
