"""Programs of torch.export answer here as their modules do, and run nothing but operators."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from foreign_samples import dataset, features, table
from model_samples import make_model
from torch import Tensor, nn
from torch.export import Dim

from kubestill.datasets import write_dataset
from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.foreign.bring import Brought, bring
from kubestill.runtime.models.foreign.match import Options
from kubestill.runtime.models.foreign.packing import pack
from kubestill.runtime.models.foreign.pt2_file import ExportedProgram
from kubestill.runtime.models.foreign.pt2_graph import Call, Name
from kubestill.runtime.models.foreign.pt2_operators import OPERATORS
from kubestill.runtime.models.foreign.pt2_read import Given, Program, read_program
from kubestill.runtime.models.foreign.pt2_run import Runner
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.models.serve import export_torch
from kubestill.runtime.steps.import_model import import_model
from kubestill.runtime.steps.label_with_teacher import label_with_teacher

CPU = torch.device("cpu")


class Of(nn.Module):
    """A function of a tensor and some modules."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.parts)


def exported(module: nn.Module, *shape: int, decomposed: bool = False, **given: Any) -> bytes:
    """Return the file of a module that reads rows of a shape."""
    example = torch.zeros(2, *shape, dtype=next((p.dtype for p in module.parameters()), None))
    rows = {0: Dim("rows", **given)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (example,), dynamic_shapes=(rows,))
        program = program.run_decompositions() if decomposed else program
        return saved(program)


def saved(program: torch.export.ExportedProgram) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def convolutions() -> tuple[nn.Module, tuple[int, ...]]:
    def views(x: Tensor, *parts: nn.Module) -> Tensor:
        first = parts[0](x)
        seen = [first, parts[1](x), parts[2](x)]
        seen += [F.interpolate(x, scale_factor=2, mode=one) for one in ("nearest", "bilinear")]
        seen += [F.pad(x, (1, 1, 1, 1), mode=one) for one in ("reflect", "replicate", "circular")]
        seen += [F.avg_pool2d(x, 3, 2, 1), F.max_pool2d(x, 3, 2, ceil_mode=True)]
        seen += [F.adaptive_max_pool2d(x, 3), F.lp_pool2d(x, 2, 2), F.unfold(x, 3)]
        grid = F.affine_grid(torch.eye(2, 3).expand(x.shape[0], 2, 3), [x.shape[0], 2, 4, 4], False)
        seen += [F.grid_sample(x, grid, align_corners=False), F.pixel_shuffle(first, 2)]
        return torch.cat([one.flatten(1) for one in seen], 1)

    norms = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    more = nn.Sequential(nn.ConvTranspose2d(2, 4, 2), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4))
    return Of(views, norms, more, nn.LocalResponseNorm(2)), (2, 8, 8)


def sequences() -> tuple[nn.Module, tuple[int, ...]]:
    def views(x: Tensor, lstm: Any, gru: Any, rnn: Any, look: Any, encoder: Any, norm: Any) -> Any:
        heads = x.reshape(x.shape[0], 5, 2, 4).transpose(1, 2)
        mask = torch.full((5, 5), -float("inf")).triu(1)
        seen = [lstm(x)[0][:, -1], gru(x)[1][0], rnn(x)[0].mean(1), look(x, x, x)[0], encoder(x)]
        seen += [F.scaled_dot_product_attention(heads, heads, heads, is_causal=True), norm(x)]
        seen += [(torch.einsum("btf,bsf->bts", x, x) + mask).softmax(-1), torch.cdist(x, x)]
        return torch.cat([one.flatten(1) for one in seen], 1)

    parts = [
        nn.LSTM(8, 3, 2, batch_first=True, dropout=0.1, bidirectional=True),
        nn.GRU(8, 3, batch_first=True),
        nn.RNN(8, 3, batch_first=True),
        nn.MultiheadAttention(8, 2, batch_first=True),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"),
        nn.LayerNorm(8),
    ]
    return Of(views, *parts), (5, 8)


def numbers() -> tuple[nn.Module, tuple[int, ...]]:
    shapes = "relu relu6 elu selu celu gelu silu mish softplus softsign tanhshrink hardtanh"
    shapes += " hardswish hardsigmoid hardshrink leaky_relu logsigmoid sigmoid tanh glu rrelu"

    def views(x: Tensor, linear: Any, bag: Any, table: Any, spread: Any) -> Tensor:
        codes = x.long() % 7
        place = torch.zeros(x.shape[0], 12)
        place[:, 1] = x[:, 0]
        place[:, [2, 5]] = 0.5
        place[:, 6:].mul_(2)
        seen = [getattr(F, name)(x) for name in shapes.split()]
        seen += [linear(x), bag(codes), table(codes), F.one_hot(codes, 7), spread(x), place]
        seen += [x.topk(3)[0], x.sort(1)[0], x.gather(1, x.argsort(1)), x.median(1)[0][:, None]]
        seen += [torch.cat(x.split(5, 1)[::-1], 1), torch.stack(x.unbind(1)[2:4], 1), x.cumsum(1)]
        seen += [torch.where(x > 0, x, x.new_zeros(())), x.masked_fill(x < 0, float("nan"))]
        seen += [x.reshape(x.shape[0] * 2 // 2, -1, 3), F.normalize(x), x.logsumexp(1, True)]
        seen += [torch.bucketize(x, torch.tensor([-1.0, 1.0])), torch.fft.rfft(x).abs()]
        seen += [x.roll(2, 1).flip(1), x.var(1, keepdim=True), x.add_(1)]
        return torch.cat([one.flatten(1).float() for one in seen], 1)

    parts = [
        nn.Sequential(nn.Linear(12, 4), nn.Dropout(0.5), nn.Linear(4, 2)),
        nn.EmbeddingBag(7, 3, mode="mean"),
        nn.Embedding(7, 3, padding_idx=0),
        nn.utils.parametrizations.weight_norm(nn.Linear(12, 2)),
    ]
    return Of(views, *parts), (12,)


def blocks() -> tuple[nn.Module, tuple[int, ...]]:
    def views(x: Tensor, spread: nn.Module, look: nn.Module, last: nn.Module) -> Tensor:
        return last(look(spread(x))).softmax(-1)

    spread = nn.Sequential(nn.Conv1d(5, 5, 3, padding=1), nn.BatchNorm1d(5), nn.ReLU())
    look = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    return Of(views, spread, look, nn.Linear(8, 2)), (5, 8)


def wrapped() -> tuple[nn.Module, tuple[int, ...]]:
    """Return what torch keeps as programs inside of the program, of the same names."""

    def views(x: Tensor, layer: nn.Module) -> Tensor:
        with torch.no_grad():
            mean = x.mean(1, keepdim=True)
            with torch.autocast("cpu", enabled=False):
                wide = layer(x).relu()
        with torch.autocast("cpu", enabled=False):
            return layer(wide).relu() + mean + mean * 2

    return Of(views, nn.Linear(3, 3)), (3,)


@pytest.mark.parametrize("make", [convolutions, sequences, numbers, blocks, wrapped])
def test_a_program_answers_as_its_module(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    module, shape = make()
    program = read_program(exported(module.eval(), *shape, decomposed=make is blocks))
    runner, (output,) = Runner(program, CPU), program.outputs.values()
    for rows in (1, 7):
        given = torch.from_numpy(np.random.default_rng(rows).normal(size=(rows, *shape))).float()
        with torch.inference_mode():
            wanted = module(given.clone())
        found = runner.run({program.given[0].name: given.clone()}, output)
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5, equal_nan=True)
        told = runner.rehearse(rows).outputs[next(iter(program.outputs))]
        assert told == (tuple(wanted.shape), wanted.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_numbers_have_the_type_of_the_weights(dtype: torch.dtype) -> None:
    module = nn.Linear(3, 2).to(dtype).eval()
    program = read_program(exported(module, 3))
    rows = torch.randn(4, 3).to(dtype)
    found = Runner(program, CPU).run({program.given[0].name: rows}, *program.outputs.values())
    with torch.inference_mode():
        assert torch.equal(found, module(rows))
    assert program.parameters == 8


def test_the_operators_compute_and_nothing_else() -> None:
    """Torch itself says of each operator what it is like: `torch.Tag`."""
    tags = torch.Tag
    found: dict[str, set[str]] = {}
    for name in OPERATORS:
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            for one in getattr(packet, overload).tags:
                found.setdefault(str(one), set()).add(name)
    # Dropout is refused unless it is that of `eval()`.
    random = "alpha_dropout dropout feature_alpha_dropout feature_dropout rrelu"
    random += " scaled_dot_product_attention _scaled_dot_product_attention_math gru lstm rnn_relu"
    random += " _scaled_dot_product_flash_attention_for_cpu rnn_tanh"
    assert found.get(str(tags.nondeterministic_seeded), set()) <= set(random.split())
    # Their sizes depend on values where an operand is a mask, or is left out; `meta` refuses that.
    sized = "one_hot index _unsafe_index repeat_interleave index_put"
    assert found.get(str(tags.dynamic_output_shape), set()) <= set(sized.split())
    assert not found.get(str(tags.data_dependent_output), set())
    inplace = found.get(str(tags.inplace_view), set())
    assert not inplace


def rows_of(folder: Path) -> Dataset:
    return dataset(folder / "rows")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return rows_of(tmp_path_factory.mktemp("rows"))


def brought(content: bytes, rows: Dataset, folder: Path, **options: Any) -> Brought:
    (folder / "model.pt2").write_bytes(content)
    found = bring(str(folder / "model.pt2"), rows, Options(**options))
    assert found is not None
    return found


COLUMNS: dict[str, Any] = {
    "inputs": ["amount", "code", "flag"],
    "classes": ["ok", "bad"],
    "output": "logit",
}


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"hidden": x * 2, "logits": self.layer(x.nan_to_num() / 10)}


@cache
def scores() -> tuple[Scores, bytes]:
    torch.manual_seed(1)
    module = Scores().eval()
    return module, exported(module, 3)


def answers(module: nn.Module) -> np.ndarray:
    frame = features()
    given = np.column_stack([frame["amount"], frame["code"], frame["flag"]]).astype(np.float32)
    with torch.inference_mode():
        return module(torch.from_numpy(given))["logits"].numpy()


def test_a_program_goes_wherever_a_model_goes(tmp_path: Path, rows: Dataset) -> None:
    module, content = scores()
    (tmp_path / "model.pt2").write_bytes(content)
    ports = ("model", "metrics", "report", "summary", "labelled", "decision")
    made = {name: LocalArtifact(str(tmp_path / name)) for name in ports}
    here = LocalArtifact(rows.root, metadata={"kind": "dataset"})
    first = {name: made[name] for name in ports[:4]}
    told: dict[str, Any] = COLUMNS | {"output": "auto"}  # "logits" says it
    import_model(source=str(tmp_path / "model.pt2"), dataset=here, holdout=here, **first, **told)
    assert "pt2: 3 inputs" in Path(made["summary"].path).read_text()
    label_with_teacher(model=made["model"], dataset=here, labelled=made["labelled"])
    predictor = load_model(made["model"].path)
    given = decode_features(next(rows.iter_blocks()), predictor.layout)
    wanted = answers(module)
    # The dataset's classes are bad and ok: one logit, that of ok.
    np.testing.assert_allclose(
        predictor.logits(given)[:, 0], wanted[:, 0] - wanted[:, 1], rtol=1e-6, atol=1e-6
    )
    assert made["metrics"].metadata["accuracy"] == pytest.approx(
        (np.where(wanted[:, 1] > wanted[:, 0], "bad", "ok") == table()["label"]).mean()
    )


def test_a_program_with_several_inputs_reads_a_column_for_each(
    tmp_path: Path, rows: Dataset
) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codes = nn.Embedding(20, 1)

        def forward(self, code: Tensor, scale: Tensor) -> Tensor:
            scale -= 1.0  # writes to what it is given
            return (self.codes(code) * (scale + 1)).sigmoid()

    module, dim = Two().eval(), Dim("rows", min=4, max=100)
    example = (torch.zeros(4, dtype=torch.int64), torch.zeros(4, 1, dtype=torch.float64))
    content = saved(torch.export.export(module, example, dynamic_shapes=({0: dim}, {0: dim})))
    given = {"inputs": ["code", "flag"], "output": "probability"}
    found = brought(content, rows, tmp_path, **given | {"classes": ["ok", "bad"]})
    raw = decode_features(next(rows.iter_blocks()), found.predictor.layout)
    before = raw.copy()
    logits = found.predictor.logits(raw)
    frame = features()
    with torch.inference_mode():
        wanted = module(
            torch.tensor(frame["code"].to_numpy()),
            torch.tensor(frame["flag"].to_numpy(), dtype=torch.float64)[:, None],
        )
    np.testing.assert_allclose(-logits, torch.logit(wanted.clip(1e-7, 1 - 1e-7)), atol=1e-5)
    # A row alone is filled up to the four that the program takes.
    np.testing.assert_allclose(found.predictor.logits(raw[:1]), logits[:1], rtol=1e-6)
    assert np.array_equal(raw, before)


@pytest.mark.parametrize("target", ["label", "grade", "later"])
def test_a_student_of_ours_comes_back(target: str, tmp_path: Path) -> None:
    frame = features().assign(when=1.7e9 + np.arange(600))  # far from 0: read less an offset
    frame[target] = frame["when"] + 1e6 if target == "later" else table()[target]
    made = write_dataset(frame, str(tmp_path / "rows"), target=target)
    assert made.schema.column("when").offset > 0
    model = make_model(made.schema, frame, network_args={"hidden": [8]})
    export_torch(model, str(tmp_path / "model.pt2"))
    found = brought((tmp_path / "model.pt2").read_bytes(), made, tmp_path)
    found.write(str(tmp_path / "model"))
    answers = load_model(str(tmp_path / "model"))(frame)
    for name, wanted in Predictor(model)(frame).items():
        if wanted.dtype.kind == "f":
            np.testing.assert_allclose(
                answers[name], wanted, rtol=1e-12 if name == target else 1e-6
            )
        else:
            np.testing.assert_array_equal(answers[name], wanted)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x * self.seen


class Quantised(torch.Tensor):
    """A subclass, which torch saves as a pickle."""


def fixed() -> bytes:
    return saved(torch.export.export(nn.Linear(3, 2).eval(), (torch.zeros(2, 3),)))


def branching() -> bytes:
    def chosen(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda one: one + 1, lambda one: one - 1, (x,))

    return exported(Of(chosen), 3)


def halved(x: Tensor, layer: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return layer(x)


def large(x: Tensor) -> Tensor:
    wide = x.new_zeros((1 << 20, 1)).expand(1 << 20, 1 << 20) + 0
    return x + wide.sum()


UNFIT: dict[str, tuple[Callable[[], bytes], str]] = {
    "fixed batch": (fixed, "batches of exactly 2 rows.*dynamic_shapes"),
    "dropout": (lambda: exported(nn.Dropout().train(), 3), "in training.*model.eval"),
    "batch norm": (lambda: exported(nn.BatchNorm1d(3).train(), 3), "in training.*model.eval"),
    "state": (lambda: exported(Counting(), 3), "'b_seen'.*is overwritten as the program answers"),
    "branch": (branching, "kind 'graph'.*higher_order.cond.*torch.onnx.export"),
    "autocast": (
        lambda: exported(Of(halved, nn.Linear(3, 2)), 3),
        "wrap_with_autocast.*half precision",
    ),
    "random": (lambda: exported(Of(torch.rand_like), 3), "rand_like.*only operators"),
    "values": (lambda: exported(Of(lambda x: x + x.sum().long().item()), 3), "item.*only oper"),
    "memory": (lambda: exported(Of(large), 3), "takes more than 2 GiB"),
    "rows before": (
        lambda: exported(Of(lambda x: x.nan_to_num().cumsum(0)[:, :2]), 3),
        "answers of a row change by up to .* with the rows beside it",
    ),
    "rows after": (
        lambda: exported(Of(lambda x: x.nan_to_num().flip(0).cumsum(0).flip(0)[:, :2]), 3),
        "answers of a row change by up to .* with the rows beside it",
    ),
    "place": (
        lambda: exported(Of(lambda x: (x + torch.arange(x.shape[0])[:, None])[:, :2]), 3),
        "answers of a row change by up to .* with the rows beside it",
    ),
    "over rows": (lambda: exported(Of(lambda x: x.mean(0)), 3), "one entry a row"),
    "beside": (
        lambda: exported(Of(lambda x: (x - x.nan_to_num().mean(0))[:, :2]), 3),
        "answers of a row change by up to .* with the rows beside it",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNFIT)
def test_what_cannot_be_a_teacher_is_refused(kind: str, tmp_path: Path) -> None:
    make, said = UNFIT[kind]
    filled = dataset(tmp_path / "rows", rows=table().fillna({"amount": 0.0}))
    with pytest.raises(InvalidInput, match=f"(?s){said}"):
        brought(make(), filled, tmp_path, **COLUMNS)


class Trap:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("was unpickled",)


def parts_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


PROGRAM, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


def changed(name: str, change: Callable[[Any], Any]) -> bytes:
    """Return the scores' file with one part of it changed: its JSON, or what its graph calls."""
    parts = parts_of(scores()[1])
    form = json.loads(parts[name])
    change(form if name != PROGRAM else form["graph_module"]["graph"])
    return pack({f"a/{key}": one for key, one in parts.items()} | {f"a/{name}": dumped(form)})


def dumped(form: Any) -> bytes:
    return json.dumps(form).encode()


def node(graph: Any, target: str) -> Any:
    return next(one for one in graph["nodes"] if target in one["target"])


def put(place: str, **values: Any) -> Callable[[Any], Any]:
    return lambda graph: node(graph, place).update(values)


def call(target: str, **operands: Any) -> Callable[[Any], Any]:
    inputs = [{"name": name, "arg": one, "kind": 1} for name, one in operands.items()]
    made = {"target": target, "inputs": inputs, "outputs": [{"as_tensor": {"name": "made"}}]}
    return lambda graph: graph["nodes"].insert(0, made | {"metadata": {}})


def meta(**values: Any) -> Callable[[Any], Any]:
    def change(form: Any) -> None:
        form["config"]["layer.weight"]["tensor_meta"].update(values)

    return change


def payload(**values: Any) -> Callable[[Any], Any]:
    return lambda form: form["config"]["layer.weight"].update(values)


X = {"as_tensor": {"name": "x"}}
OTHER_TARGETS = [
    "torch.ops.aten.from_file.default",
    "torch.ops.aten.resize_.default",
    "torch.ops.aten.set_.source_Storage",
    "torch.ops.aten.as_strided_.default",
    "torch.ops.aten._reshape_alias.default",
    "torch.ops.aten.add.out",
    "torch.ops.aten.add.str",
    "torch.ops.aten.mul.left_t",
    "torch.ops.aten.to.prim_dtype",
    "torch.ops.aten.lstm.data",
    "torch.ops.aten.add.__class__",
    "torch.ops.aten.__class__.default",
    "torch.ops.prims.add.default",
    "torch.ops.mine.run.default",
    "torch.ops.aten.add.Tensor.__call__",
    "torch.load",
    "torch.hub.load",
    "_operator.attrgetter",
    "_operator.pow",
    "math.__loader__.load_module",
    "os.system",
    "#extension:run",
    "torch.ops.higher_order.cond",
    "",
]
ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    **{
        f"calls {one}": (lambda one=one: changed(PROGRAM, call(one, self=X)), "only operators")
        for one in OTHER_TARGETS
    },
    "no such operand": (
        lambda: changed(PROGRAM, call("torch.ops.aten.relu.default", self=X, file=X)),
        "has no 'file'",
    ),
    "too few operands": (lambda: changed(PROGRAM, put("linear", inputs=[])), "needs 'input'"),
    "a name of nothing": (
        lambda: changed(
            PROGRAM, call("torch.ops.aten.relu.default", self={"as_tensor": {"name": "y"}})
        ),
        "'y', which nothing gave",
    ),
    "a circle": (
        lambda: changed(PROGRAM, lambda graph: graph["nodes"].reverse()),
        "which nothing gave so far",
    ),
    "two of a name": (
        lambda: changed(PROGRAM, lambda graph: graph["nodes"].append(graph["nodes"][-1])),
        "which is there already",
    ),
    "text as a number": (
        lambda: changed(PROGRAM, call("torch.ops.aten.relu.default", self={"as_int": "1"})),
        "as_int that is none",
    ),
    "text as a tensor": (
        lambda: changed(PROGRAM, call("torch.ops.aten.relu.default", self={"as_string": "1"})),
        "does not take what the program gives it",
    ),
    "text many times": (
        lambda: changed(
            PROGRAM, call("_operator.mul", a={"as_string": "a"}, b={"as_int": 1 << 40})
        ),
        "sizes are computed of numbers",
    ),
    "a number of many digits": (
        lambda: changed(
            PROGRAM, call("_operator.mul", a={"as_int": 1 << 60}, b={"as_int": 1 << 60})
        ),
        "more than 64 bits",
    ),
    "terabytes": (
        lambda: changed(
            PROGRAM,
            call(
                "torch.ops.aten.full.default",
                size={"as_ints": [1 << 20, 1 << 20]},
                fill_value={"as_int": 1},
            ),
        ),
        "takes more than 2 GiB",
    ),
    "billions of parts": (
        lambda: changed(
            PROGRAM,
            lambda graph: (
                call("torch.ops.aten.unbind.int", self={"as_tensor": {"name": "made0"}})(graph),
                call(
                    "torch.ops.aten.full.default",
                    size={"as_ints": [1 << 28]},
                    fill_value={"as_int": 1},
                    dtype={"as_scalar_type": 1},
                )(graph),
                graph["nodes"][0].update(outputs=[{"as_tensor": {"name": "made0"}}]),
                graph["nodes"][1].update(outputs=[{"as_tensors": [{"name": "made"}]}]),
            ),
        ),
        "268,435,456 tensors of one",
    ),
    "a shape that lies": (
        lambda: changed(WEIGHTS, meta(sizes=[{"as_int": 1 << 40}, {"as_int": 3}])),
        "more than it holds",
    ),
    "a shape of one number": (
        lambda: changed(WEIGHTS, meta(sizes=[{"as_int": 1 << 40}], strides=[{"as_int": 0}])),
        "more than 2,147,483,648 bytes",
    ),
    "before the bytes": (
        lambda: changed(WEIGHTS, meta(storage_offset={"as_int": -1})),
        "greater than or equal to 0",
    ),
    "sizes that no kernel checks": (
        lambda: changed(
            PROGRAM,
            call(
                "torch.ops.aten._native_batch_norm_legit_no_training.default",
                input=X,
                weight={"as_none": True},
                bias={"as_none": True},
                running_mean={"as_tensor": {"name": "p_layer_bias"}},
                running_var={"as_tensor": {"name": "p_layer_bias"}},
                momentum={"as_float": 0.1},
                eps={"as_float": 0.1},
            ),
        ),
        "it gets .2. as running_mean for .2, 3.",
    ),
    "beyond the bytes": (
        lambda: changed(
            PROGRAM,
            call(
                "torch.ops.aten.as_strided.default",
                self={"as_tensor": {"name": "p_layer_bias"}},
                size={"as_ints": [1000]},
                stride={"as_ints": [1]},
            ),
        ),
        "out of bounds",
    ),
    "a number as a constant of torch": (
        lambda: changed(
            PROGRAM,
            call("torch.ops.aten.clone.default", self=X, memory_format={"as_int": -1}),
        ),
        "memory_format that is none",
    ),
    "an unknown type": (lambda: changed(WEIGHTS, meta(dtype=29)), "is of a type that is not read"),
    "sparse": (lambda: changed(WEIGHTS, meta(layout=1)), "is sparse"),
    "a pickled weight": (lambda: changed(WEIGHTS, payload(use_pickle=True)), "stored as a pickle"),
    "a path": (
        lambda: changed(WEIGHTS, payload(path_name="../../../../etc/passwd")),
        "etc/passwd is missing in the file",
    ),
    "no such weight": (lambda: changed(WEIGHTS, lambda form: form["config"].clear()), "lacks 'lay"),
    "another version": (
        lambda: repacked(PROGRAM, schema_version={"major": 9, "minor": 1}),
        "schema version 9.1'.*version 8.*is read here",
    ),
    "no version": (lambda: repacked(PROGRAM, schema_version={}), "major: Field required"),
    "old weights": (lambda: repacked("", **{"data/weights/model.pt": ""}), "an older torch saves"),
    "two programs": (lambda: repacked("", **{"models/b.json": ""}), "'2 programs'"),
    "not JSON": (lambda: repacked("", **{PROGRAM: "{"}), "cannot be read as JSON"),
    "deep": (lambda: repacked("", **{PROGRAM: "[" * 100_000}), "nested deeper|cannot be read"),
    "compressed": (lambda: rewritten(zipfile.ZIP_DEFLATED), "its files are compressed"),
    "twice": (lambda: rewritten(zipfile.ZIP_STORED, twice=True), "holds a file twice"),
    "cut": (lambda: scores()[1][:2000], "damaged zip"),
    "a flipped bit": (lambda: scores()[1].replace(b'"aten"', b'"atem"'), "Bad CRC-32"),
}


def repacked(name: str, **parts: Any) -> bytes:
    """Return the scores' file with parts of it, or entries of the JSON of one, put in place."""
    held = parts_of(scores()[1])
    if name:
        held[name] = dumped(json.loads(held[name]) | parts)
    else:
        held |= {key: one.encode() for key, one in parts.items()}
    return pack({f"a/{key}": one for key, one in held.items()})


def rewritten(how: int, twice: bool = False) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", how) as archive:
        warnings.simplefilter("ignore")
        for name, one in parts_of(scores()[1]).items():
            for _ in range(1 + (twice and name == PROGRAM)):
                archive.writestr(f"a/{name}", one)
    return file.getvalue()


@pytest.mark.parametrize("kind", ATTACKS)
def test_a_file_made_on_purpose_ends_in_one_error(
    kind: str, tmp_path: Path, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, said = ATTACKS[kind]
    content = make()
    for module in (pickle, torch):
        monkeypatch.setattr(module, "load", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises((CorruptData, InvalidInput), match=f"(?s){said}"):
        brought(content, rows, tmp_path, **COLUMNS)


def test_sample_inputs_are_never_read(tmp_path: Path, rows: Dataset) -> None:
    parts = parts_of(scores()[1]) | {"data/sample_inputs/model.pt": pickle.dumps(Trap())}
    parts["data/constants/custom_obj_0"] = pickle.dumps(Trap())
    content = pack({f"../{name}": one for name, one in parts.items()})
    found = brought(content, rows, tmp_path, **COLUMNS)
    raw = decode_features(next(rows.iter_blocks()), found.predictor.layout)
    assert np.isfinite(found.predictor.logits(raw)).all()
    assert not list(tmp_path.parent.glob("models"))


def test_a_batch_takes_no_more_memory_than_a_bound() -> None:
    wide = nn.Sequential(nn.Linear(4, 100_000), nn.ReLU(), nn.Linear(100_000, 2))
    program = ExportedProgram(exported(wide.eval(), 4))
    assert 100 < program._most < 1000


def alone(
    *calls: tuple[str, dict[str, Any], str], held: dict[str, Tensor] | None = None
) -> Callable[[int], Tensor]:
    """Return what computes the last of some calls on x [rows, 3]; operands of text are names.

    As a file may have it that no exporter wrote.
    """

    def named(one: Any) -> Any:
        if isinstance(one, list):
            return [named(each) for each in one]
        return Name(one) if isinstance(one, str) else one

    program = Program(
        held=held or {},
        scalars={},
        given=(Given("x", torch.float32, (3,)),),
        calls=tuple(
            Call(
                target if target.startswith("_operator") else f"torch.ops.aten.{target}",
                tuple((name, named(one)) for name, one in operands.items()),
                (made,),
            )
            for target, operands, made in calls
        ),
        outputs={"made": calls[-1][2]},
        least=1,
        most=None,
        parameters=0,
        spec=None,
    )
    runner = Runner(program, CPU)
    runner.rehearse(2)
    return lambda rows: runner.run({"x": torch.zeros(rows, 3)}, calls[-1][2])


WAVE = torch.zeros(3, 4, dtype=torch.complex64)
SQUARE = torch.ones(1, 1, 4, 4)
TRUSTING: dict[str, tuple[str, dict[str, Any]]] = {
    "bags that begin before the codes": (
        "embedding_bag.default",
        {"weight": torch.ones(7, 3), "indices": torch.tensor([0, 1, 2, 5])}
        | {"offsets": torch.tensor([0, -1000, 2])},
    ),
    "no bags": (
        "_embedding_bag_forward_only.default",
        {"weight": torch.ones(7, 3), "indices": torch.tensor([0, 1, 2, 5])}
        | {"offsets": torch.zeros(0, dtype=torch.int64)},
    ),
    "an axis twice": ("_fft_c2c.default", {"self": WAVE, "dim": [1, 1]}),
    "an axis from the end": ("_fft_c2c.default", {"self": WAVE, "dim": [-1]}),
    "half of a wave that is too long": (
        "_fft_c2r.default",
        {"self": WAVE, "dim": [1], "normalization": 0, "last_dim_size": 3},
    ),
    "norms of another size": (
        "_weight_norm_interface.default",
        {"v": torch.ones(3, 4), "g": torch.ones(1, 1), "dim": 0},
    ),
    "norms of nothing": (
        "_weight_norm.default",
        {"v": torch.ones(0, 4), "g": torch.ones(0, 1), "dim": 0},
    ),
    "a scale that the size is not of": (
        "_upsample_bilinear2d_aa.default",
        {"self": SQUARE, "output_size": [8, 8], "align_corners": False, "scales_w": 0.5},
    ),
    "an unknown mode": (
        "grid_sampler_3d.default",
        {"input": SQUARE[None], "grid": torch.zeros(1, 1, 1, 1, 3)}
        | {"interpolation_mode": 7, "padding_mode": 0, "align_corners": False},
    ),
    "an assertion in torch": (
        "polar.default",
        {"abs": torch.ones(2, dtype=torch.int64), "angle": torch.ones(2)},
    ),
}


@pytest.mark.parametrize("kind", TRUSTING)
def test_operands_that_a_kernel_trusts_are_checked(kind: str) -> None:
    """Each of these read or wrote outside of its tensors, or ended in an error of another kind."""
    target, told = TRUSTING[kind]
    held = {name: one for name, one in told.items() if isinstance(one, Tensor)}
    operands = told | {name: name for name in held}
    if "_fft_c2c" in target:
        operands |= {"normalization": 0, "forward": True}
    with pytest.raises(
        (CorruptData, ValueError), match="it gets|offsets do not rise|must be floating"
    ):
        alone((target, operands, "made"), held=held)(2)


def test_a_view_that_hides_what_it_is_of_writes_to_no_weight() -> None:
    with pytest.raises(InvalidInput, match="'w'.*is overwritten"):
        alone(
            ("_unsafe_view.default", {"self": "w", "size": [3]}, "v"),
            ("add_.Scalar", {"self": "v", "other": 1}, "made"),
            held={"w": torch.zeros(1, 3)},
        )


def test_memory_between_the_numbers_of_a_tensor_is_empty() -> None:
    for _ in range(20):  # as what was freed before may be what is got
        torch.full((1001,), 7.0)
        found = alone(
            ("empty_strided.default", {"size": [2], "stride": [1000]}, "e"),
            ("as_strided.default", {"self": "e", "size": [1001], "stride": [1]}, "made"),
        )(2)
        assert not found.any()


def test_tensors_take_no_more_than_a_bound_together() -> None:
    most = [(1 << 29) - 1]
    makes = [("full.default", {"size": most, "fill_value": 1.0}, f"t{i}") for i in range(3)]
    with pytest.raises(InvalidInput, match="tensors at a time"):
        alone(*makes, ("stack.default", {"tensors": ["t0", "t1", "t2"]}, "made"))


def test_no_number_of_rows_is_computed_unrehearsed() -> None:
    compute = alone(
        ("sym_size.int", {"self": "x", "dim": 0}, "n"),
        ("_operator.floordiv", {"a": "n", "b": 7}, "sevens"),
        ("_operator.mul", {"a": "sevens", "b": 1 << 33}, "many"),
        ("full.default", {"size": ["many"], "fill_value": 1}, "made"),
    )
    assert not len(compute(6))
    with pytest.raises(InvalidInput, match="takes more than 2 GiB"):
        compute(7)
