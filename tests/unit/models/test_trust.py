"""What a file from a store may name: nothing that nobody on this side vouches for is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from model_samples import make_model, mixed_frame, mixed_schema
from own_networks import TinyConv

from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.base import trust
from kubestill.runtime.generation.systems import load_system
from kubestill.runtime.generation.systems.load import load_named_system
from kubestill.runtime.models.export import SPEC_FILE, export_model, load_model
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.resolve import resolve_network


@pytest.fixture
def plain() -> Model:
    return make_model(mixed_schema("binary"), mixed_frame())


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a mark when it is imported, when it is called and when it is built."""
    folder = tmp_path / "site"
    folder.mkdir()
    mark = f"open({str(tmp_path / 'mark')!r}, 'a').close()\n"
    (folder / "planted.py").write_text(
        f"{mark}from torch import nn\n"
        f"class Net(nn.Linear):\n"
        f"    def __init__(self, in_features: int, out_features: int):\n"
        f"        {mark}"
        f"        super().__init__(in_features, out_features)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "planted", raising=False)
    return tmp_path


def forge(folder: Path, factory: Any, args: Any = None) -> str:
    spec = json.loads((folder / SPEC_FILE).read_text())
    spec["network"]["factory"] = factory
    if args is not None:
        spec["network"]["args"] = args
    (folder / SPEC_FILE).write_text(json.dumps(spec))
    return str(folder)


FORGED = [
    ("planted:Net", None),
    ("planted:Net.mro", None),
    ("torch.fx.graph_module:reduce_graph_module", {"body": {}, "import_block": "MARK"}),
    ("torch.nn:Linear", {"in_features": 2, "out_features": 1}),
    ("os:mkdir", {"path": "MARK"}),
    ("kubestill.cli:main", {}),
    ("kubestill.runtime.models.networks:mlp", {}),
    (".planted:Net", None),
    ("planted :Net", None),
    (":planted", None),
]


@pytest.mark.parametrize(("factory", "args"), FORGED, ids=[factory for factory, _ in FORGED])
def test_what_nobody_vouches_for_is_not_even_imported(
    plain: Model, planted: Path, factory: str, args: dict[str, Any] | None
) -> None:
    export_model(plain, str(planted / "model"))
    body = f"open({str(planted / 'mark')!r}, 'w')"
    given = args and {key: body if value == "MARK" else value for key, value in args.items()}
    before = set(sys.modules)
    with pytest.raises(InvalidInput, match="vouches for it, so it is not even imported"):
        load_model(forge(planted / "model", factory, given))
    assert not (planted / "mark").exists()
    assert "planted" not in set(sys.modules) - before


@pytest.mark.parametrize(
    "attribute",
    ["torch.fx.graph_module.reduce_graph_module", "reduce_graph_module", "Linear", "Net.mro"],
)
def test_a_trusted_module_vouches_for_nothing_that_it_imports(
    plain: Model, planted: Path, attribute: str
) -> None:
    source = planted / "site" / "planted.py"
    source.write_text(
        "import torch\nfrom torch.nn import Linear\n"
        "from torch.fx.graph_module import reduce_graph_module\n" + source.read_text()
    )
    export_model(plain, str(planted / "model"))
    done = planted / "done"
    args = {"import_block": f"open({str(done)!r}, 'w').close()", "body": {"_code": ""}}
    with pytest.raises(InvalidInput):
        load_model(forge(planted / "model", f"planted:{attribute}", args), trust=("planted",))
    assert not done.exists()


@pytest.mark.parametrize("system", ["planted:os.mkdir", "planted:mkdir", "planted:Net"])
def test_a_system_that_a_file_names_is_a_system_of_a_trusted_module(
    planted: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    source = planted / "site" / "planted.py"
    source.write_text("import os\nfrom os import mkdir\n" + source.read_text())
    monkeypatch.setenv(trust.TRUST, "planted")
    with pytest.raises(InvalidInput):
        load_named_system(system, {"path": str(planted / "made")})
    assert not (planted / "made").exists()
    with pytest.raises(InvalidInput, match="vouches for it"):
        load_named_system("elsewhere:System", {})


def test_an_entry_point_of_the_current_folder_is_none(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = planted / "site"
    (site / "planted-1.0.dist-info").mkdir()
    (site / "planted-1.0.dist-info" / "METADATA").write_text("Name: planted\nVersion: 1.0\n")
    entry = f"[{trust.NETWORKS}]\nplanted = planted:Net\n"
    (site / "planted-1.0.dist-info" / "entry_points.txt").write_text(entry)
    assert trust.registered(trust.NETWORKS) == ["planted"]
    monkeypatch.chdir(site)
    assert trust.registered(trust.NETWORKS) == []
    assert trust.find_registered(trust.NETWORKS, "planted") is None
    assert not (planted / "mark").exists()


@pytest.mark.parametrize("given", [None, (), "", ("",), "other,planted", b"planted"])
def test_what_is_given_as_trust_is_read_as_people_write_it(given: Any) -> None:
    try:
        trust.check_trusted("planted:Net", field="network", group=trust.NETWORKS, trust=given)
    except InvalidInput:
        assert given != "other,planted"
    else:
        assert given == "other,planted"


def test_the_caller_may_vouch_for_a_package(plain: Model, planted: Path) -> None:
    export_model(plain, str(planted / "model"))
    folder = forge(planted / "model", "planted:Net", {})
    # Its weights are those of another network.
    with pytest.raises(CorruptData, match="size mismatch|Missing key"):
        load_model(folder, trust=("planted",))
    assert (planted / "mark").exists()


@pytest.mark.parametrize(
    ("vouched", "module", "good"),
    [
        ("my_pkg", "my_pkg", True),
        ("my_pkg", "my_pkg.nets", True),
        ("other, my_pkg", "my_pkg.nets", True),
        ("my_pkg.nets", "my_pkg.nets", True),
        ("my_pkg.nets", "my_pkg.other", False),
        ("my_pkg", "my_pkg_too", False),
        ("my", "my_pkg", False),
        ("", "my_pkg", False),
        (",", "", False),
    ],
)
def test_a_package_stands_for_its_modules_and_no_others(
    monkeypatch: pytest.MonkeyPatch, vouched: str, module: str, good: bool
) -> None:
    monkeypatch.setenv(trust.TRUST, vouched)
    try:
        trust.check_trusted(f"{module}:Net", field="network", group=trust.NETWORKS)
    except InvalidInput:
        assert not good
    else:
        assert good


def test_the_current_folder_is_vouched_for_by_nobody(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(trust.TRUST, "planted")
    trust.check_trusted("planted:Net", field="network", group=trust.NETWORKS)
    monkeypatch.chdir(planted / "site")
    with pytest.raises(InvalidInput, match="from the current folder"):
        trust.check_trusted("planted:Net", field="network", group=trust.NETWORKS)


def test_an_installed_package_may_register_a_network_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point = EntryPoint("tiny-conv", "own_networks:TinyConv", trust.NETWORKS)

    def entry_points(group: str, name: str = point.name) -> list[EntryPoint]:
        return [point] if (group, name) == (point.group, point.name) else []

    monkeypatch.setattr(trust, "entry_points", entry_points)
    assert resolve_network("tiny-conv") is TinyConv
    with pytest.raises(InvalidInput, match="did you mean 'tiny-conv'"):
        resolve_network("tiny-con")


def test_a_system_by_name_is_built_in_or_registered() -> None:
    with pytest.raises(InvalidInput, match="did you mean 'heat'"):
        load_system("haet")


def test_a_factory_that_exits_ends_no_server(plain: Model, planted: Path) -> None:
    (planted / "site" / "leaving.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        raise SystemExit(0)\n"
    )
    export_model(plain, str(planted / "model"))
    with pytest.raises(InvalidInput, match="raised SystemExit"):
        load_model(forge(planted / "model", "leaving:Net", {}), trust="leaving")


def test_a_fresh_process_in_a_planted_folder_loads_only_what_it_asked_for(
    plain: Model, planted: Path
) -> None:
    export_model(plain, str(planted / "model"))
    folder = forge(planted / "model", "planted:Net", {})
    code = f"import kubestill; kubestill.load_model({folder!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=planted / "site", capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "vouches for it" in done.stderr
    assert not (planted / "mark").exists()
