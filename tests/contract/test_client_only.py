"""Where only the client extra is installed, each command works or says which extra it needs."""

import json
import re
import tomllib

import pytest

from kubestill.cli.extras import explain_missing

MODULES = {"scikit-learn": "sklearn", "google-cloud-storage": "google.cloud"}
WALK = """
import json, os, sys
import click
from click.testing import CliRunner
from kubestill.cli import main
from kubestill.client import api

api.PAUSE_S = 0.0
VALUES = {"pipeline": "surrogate", "run_id": "r-1", "uri": os.environ["FOLDER"]}
# Without it the files beside the code would be written.
OPTIONS = {("compile",): ["--output", "dist"]}

def leaves(command, words=()):
    if not isinstance(command, click.Group):
        yield words, command
        return
    for name, one in command.commands.items():
        yield from leaves(one, (*words, name))

told = {}
for words, command in leaves(main):
    given = [
        VALUES.get(one.name, "x") for one in command.params if isinstance(one, click.Argument)
    ]
    given += OPTIONS.get(words, [])
    done = CliRunner().invoke(main, [*words, *given], input="y\\n")
    crashed = done.exception is not None and not isinstance(done.exception, SystemExit)
    told[" ".join(words)] = [repr(done.exception) if crashed else "", done.output]
print(json.dumps(told))
"""
"""Runs every command once, against a host where nobody answers."""


@pytest.fixture(scope="module")
def extras(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return {
        extra: {re.split(r"[<>=\[]", one)[0] for one in wanted}
        for extra, wanted in project["optional-dependencies"].items()
    }


@pytest.fixture(scope="module")
def told(without, extras, tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    others = set().union(*(extras[name] for name in ("runtime", "s3", "docker", "onnx")))
    blocked = {str(MODULES.get(name, name)) for name in others - extras["client"]}
    assert {"torch", "numpy", "pyarrow", "sklearn", "botocore"} <= blocked
    where = {"FOLDER": str(folder), "KUBESTILL_HOST": "http://127.0.0.1:9"}
    where |= {"KUBESTILL_CONFIG": "/dev/null", "KUBECONFIG": "/dev/null"}
    code = f"import os; os.environ |= {where!r}; os.chdir({str(folder)!r})\n{WALK}"
    return json.loads(without(",".join(sorted(blocked)), code).splitlines()[-1])


def test_no_command_ends_in_a_traceback(told):
    assert {name: crash for name, (crash, _) in told.items() if crash} == {}


def test_only_what_computes_on_this_machine_needs_the_runtime(told):
    missing = {name: said.strip() for name, (_, said) in told.items() if "not installed" in said}
    for said in missing.values():
        assert re.fullmatch(
            r"Error: this command needs [\w-]+, which is not installed: "
            r"pip install 'kubestill\[\w+\]'",
            said,
        )
    # Whoever reads records needs pydantic, which is small: the client extra may bring it.
    needing = {name for name, said in missing.items() if "needs pydantic" not in said}
    assert needing == {"run", "serve"}


def test_the_walk_reaches_every_command(told):
    assert len(told) >= 20
    assert "schedule set" in told


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("torch", "runtime"),
        ("sklearn.utils", "runtime"),
        ("botocore", "s3"),
        ("docker", "docker"),
        ("starlette.routing", "serve"),
        ("prometheus_client", "serve"),
    ],
)
def test_the_extra_is_the_one_that_brings_the_package(module, extra):
    assert f"pip install 'kubestill[{extra}]'" in explain_missing(module)


def test_a_stranger_is_in_no_extra():
    assert explain_missing("no_such_package") == ""
