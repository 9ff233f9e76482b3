"""The two halves never mix: no torch where pipelines are written, no kfp where they run."""

import pytest

CLIENT = ["kubestill.assets", "kubestill.cli", "kubestill.components", "kubestill.local"]
CLIENT += ["kubestill.pipelines", "kubestill.errors", "kubestill.client", "kubestill.client.doctor"]
LEDGERS = ["kubestill.runtime.checkpoints", "kubestill.runtime.checkpoints.protocol"]
LEDGERS += ["kubestill.runtime.selection", "kubestill.runtime.stores"]
LEDGERS += ["kubestill.runtime.retraining"]
IMPORT_ALL = """
import importlib, pkgutil, sys, kubestill.runtime
import kubestill.runtime.steps.train_teacher
assert "scipy" not in sys.modules  # it would take longer to import than all else beside torch
modules = [m.name for m in pkgutil.walk_packages(kubestill.runtime.__path__, "kubestill.runtime.")]
for name in modules:
    importlib.import_module(name)
print(len(modules))
"""


def test_the_whole_runtime_imports_without_kfp(without):
    assert int(without("kfp,kfp_kubernetes,kfp_server_api", IMPORT_ALL)) > 50


@pytest.mark.parametrize("module", CLIENT + LEDGERS)
def test_a_client_module_imports_without_torch(without, module):
    without("torch,numpy,pandas,pyarrow,sklearn,scipy,matplotlib", f"import {module}")


def test_everything_compiles_without_torch(without, tmp_path):
    code = f"from kubestill.cli import main; main(['compile', '--output', {str(tmp_path)!r}])"
    without("torch,numpy,pandas,pyarrow,pydantic,safetensors", code)
    assert (tmp_path / "pipelines" / "distillation.yaml").exists()
    assert len(list(tmp_path.glob("components/*.yaml"))) >= 9


def test_compiling_everything_takes_less_than_five_seconds(without, tmp_path):
    code = (
        "import os; from kubestill.cli import main\n"
        f"main(['compile', '--output', {str(tmp_path)!r}], standalone_mode=False)\n"
        "times = os.times(); print(times.user + times.system)"
    )
    # Processor time, because other tests may be running on the same machine.
    assert float(without("torch", code).split()[-1]) < 5
