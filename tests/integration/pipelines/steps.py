"""Find the process that works in a step of a local run, to kill it."""

from pathlib import Path


def find_worker(run: int, component: str = "") -> int:
    """Return the process id of a running step's worker; 0 where there is none.

    A step is two processes: one that stands for its pod and starts the other, the worker, again.

    Args:
        run: Process id of `kubestill run`.
        component: Of which step; empty takes any.
    """
    wanted = {b"kfp.dsl.executor_main", component.encode()} - {b""}
    steps: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdigit() else []
            if not wanted <= set(words):
                continue
            if f"KUBESTILL_DRIVER={run}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                steps[int(folder.name)] = int(parent)
        except OSError:
            continue  # it ended in the meantime
    return next((process for process, parent in steps.items() if parent in steps), 0)
