"""Kubeflow from the outside: upload, run, schedule, check."""

from kubestill.client.api import Api
from kubestill.client.runs import failures, follow_run, start_run
from kubestill.client.schedules import (
    Schedule,
    check_arguments,
    list_schedules,
    put_schedule,
    remove_schedule,
    set_paused,
)
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
    "ensure_version",
    "failures",
    "follow_run",
    "list_schedules",
    "put_schedule",
    "read_connection",
    "read_trigger",
    "remove_schedule",
    "set_paused",
    "start_run",
]
