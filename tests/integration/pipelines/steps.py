"""Find the process that works in a step of a local run, to kill it."""

from __future__ import annotations

from pathlib import Path

from kubestill.forkserver import HEAVY, LIGHT


def find_worker(run: int, component: str = "") -> int:
    """Return the process id of a running step's worker; 0 where there is none.

    A step is two processes: one that stands for its pod and starts the other, the worker, again.
    One that was started has a command line of its own; one that was forked is shown by its name.

    Args:
        run: Process id of `kubestill run`.
        component: Of which step; empty takes any.
    """
    wanted = [component] if component else [*HEAVY, *LIGHT]
    names, words = {one[:15] for one in wanted}, {one.encode() for one in wanted}
    parents: dict[int, int] = {}
    steps: set[int] = set()
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdigit():
                continue
            process = int(folder.name)
            parents[process] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = set((folder / "cmdline").read_bytes().split(b"\0"))
            started = b"kfp.dsl.executor_main" in command and words & command
            if started or (folder / "comm").read_text().strip() in names:
                steps.add(process)
        except OSError:
            continue  # it ended in the meantime

    def is_ours(process: int) -> bool:
        while process not in (0, run):
            process = parents.get(process, 0)
        return process == run

    return next((one for one in steps if parents[one] in steps and is_ours(one)), 0)
