"""Tasks in real containers of the real image: hardened, killed, out of memory, never lied about."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl

from kubestill.components._image import IMAGE
from kubestill.local import Containers, LocalRun, run_pipeline

pytestmark = pytest.mark.container
DOCKER = os.environ.get("DOCKER", "docker")
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none")


def docker(*arguments: str) -> str:
    done = subprocess.run([DOCKER, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def act(what: str, where: str) -> str:
    import os
    import sys
    import time

    if what == "fail":
        raise ValueError("on purpose")
    if what == "exit":
        sys.exit(3)
    if what == "eat":
        held = [bytearray(1 << 24) for _ in range(64)]
        print(len(held))
    if what == "once" and not os.path.exists(where):
        open(where, "w").close()
        time.sleep(120)
    return f"{os.getuid()} {os.access('/', os.W_OK)}"


@dsl.pipeline(name="acting")
def acting(what: str, where: str = ""):
    task: Any = act(what=what, where=where)
    task.set_retry(num_retries=2)


def run(tmp_path: Path, what: str, *arguments: str, where: str = "") -> LocalRun:
    return run_pipeline(
        acting.pipeline_spec,
        {"what": what, "where": where},
        root=str(tmp_path / "runs"),
        containers=Containers(arguments=(*HARDENED, *arguments)),
    )


def output(result: LocalRun) -> str:
    written = Path(result.tasks[0].folder, "output_metadata.json").read_text()
    return json.loads(written)["parameterValues"]["Output"]


def test_a_read_only_root_no_capabilities_and_any_user(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o777)
    os.umask(0o000)
    try:
        result = run(tmp_path, "pass", "--user=54321:54321")
    finally:
        os.umask(0o022)
    assert (result.failed, result.error) == (None, "")
    assert output(result) == "54321 False"


@pytest.mark.parametrize(
    ("what", "said"), [("fail", "on purpose"), ("exit", "code 3")], ids=["raises", "exits"]
)
def test_a_task_that_fails_at_its_start_is_never_a_success(tmp_path, what, said):
    for _ in range(3):
        result = run(tmp_path, what)
        assert result.failed is not None
        assert said in result.failed.error


def test_running_out_of_memory_is_called_that(tmp_path):
    result = run(tmp_path, "eat", "--memory=256m", "--memory-swap=256m")
    assert result.failed is not None
    assert result.failed.error == "out of memory"


def test_an_image_that_is_not_there_is_a_failure(tmp_path):
    spec = type(acting.pipeline_spec)()
    spec.CopyFrom(acting.pipeline_spec)
    executor = spec.deployment_spec["executors"]["exec-act"]["container"]
    executor["image"] = "kubestill:no-such-version"
    result = run_pipeline(
        spec, {"what": "pass"}, root=str(tmp_path / "runs"), containers=Containers()
    )
    assert result.failed is not None


def test_a_killed_container_is_started_again(tmp_path):
    marker = tmp_path / "runs" / "marker"
    before = set(docker("ps", "--quiet").split())

    def kill() -> None:
        while not marker.exists():
            time.sleep(0.05)
        (mine,) = docker("ps", "--quiet", "--filter", "name=kubestill-").split()
        assert mine not in before
        docker("kill", mine)

    thread = threading.Thread(target=kill)
    thread.start()
    result = run(tmp_path, "once", where=str(marker))
    thread.join()
    assert (result.failed, result.error) == (None, "")
    log = Path(result.tasks[0].log).read_text()
    assert log.count("Looking for component") == 2


def test_no_container_stays_behind(tmp_path):
    before = docker("ps", "--all", "--quiet")
    run(tmp_path, "fail")
    assert docker("ps", "--all", "--quiet") == before


def test_no_container_outlives_a_run_that_was_killed(tmp_path):
    marker = tmp_path / "runs" / "marker"
    pipeline: Any = acting
    compiler.Compiler().compile(pipeline, str(tmp_path / "acting.yaml"))
    command = [sys.executable, "-m", "kubestill", "run", str(tmp_path / "acting.yaml")]
    command += [
        "--runner=docker",
        f"--output={tmp_path / 'runs'}",
        "-pwhat=once",
        f"-pwhere={marker}",
    ]
    process = subprocess.Popen(command, cwd=tmp_path)
    while not marker.exists():
        assert process.poll() is None
        time.sleep(0.05)
    (mine,) = docker("ps", "--quiet", "--filter", "name=kubestill-").split()
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while mine in docker("ps", "--all", "--quiet").split():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_the_image_is_what_it_says():
    config = docker("inspect", "--format", "{{json .Config}}", IMAGE)
    assert '"User":"1000:0"' in config
    assert "org.opencontainers.image.version" in config


def test_a_cpu_build_of_torch_makes_a_small_image():
    ask = "import torch; print(torch.version.cuda or '')"
    if cuda := docker("run", "--rm", *HARDENED, IMAGE, "python", "-c", ask).strip():
        pytest.skip(f"the index gave a build of torch for CUDA {cuda}; the bar is for a CPU build")
    assert int(docker("inspect", "--format", "{{.Size}}", IMAGE)) <= 1_050_000_000


def test_all_that_a_step_imports_has_its_bytecode():
    # What has none is compiled again at the start of every step: the image is read-only.
    look = """
import importlib, os, pkgutil, sys
import kubestill.runtime.steps as tasks
for module in pkgutil.iter_modules(tasks.__path__, tasks.__name__ + "."):
    importlib.import_module(module.name)
specs = [getattr(module, "__spec__", None) for module in sys.modules.values()]
cached = {spec.name: spec.cached for spec in specs if spec is not None and spec.cached}
assert len(cached) > 1000
print(*[name for name, path in cached.items() if not os.path.exists(path)])
"""
    assert docker("run", "--rm", *HARDENED, IMAGE, "python", "-c", look) == ""
