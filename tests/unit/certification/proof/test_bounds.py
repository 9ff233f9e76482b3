"""Bounds of networks and activations over boxes, against dense sampling and corners."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from proof_parts import Line, Saddle, Waves, make_predictor, plain_predictor

from kubestill.errors import InvalidInput
from kubestill.runtime.certification.proof.activations import ACTIVATIONS, InverseRoot, Kink, Smooth
from kubestill.runtime.certification.proof.bounds import (
    HUGE,
    Features,
    Quadratics,
    bound_network,
)
from kubestill.runtime.certification.proof.graph import (
    Add,
    Apply,
    Concat,
    Graph,
    Linear,
    Multiply,
    Operation,
    Scale,
    _Reader,  # pyright: ignore[reportPrivateUsage]
)
from kubestill.runtime.certification.proof.sides import NetworkSide
from kubestill.runtime.certification.proof.space import Boxes, Space
from kubestill.runtime.models.networks import Residual
from kubestill.runtime.models.predict import Predictor

SIZES = (1.0, 0.3, 0.03, 1e-3, 1e-6, 0.0)

NETWORKS = {
    **{
        f"mlp-{name}": ("mlp", {"activation": name})
        for name in (
            "elu",
            "gelu",
            "leaky_relu",
            "mish",
            "relu",
            "sigmoid",
            "silu",
            "softplus",
            "tanh",
        )
    },
    "linear": ("mlp", {"hidden": []}),
    "layer-norm": ("mlp", {"norm": "layer", "activation": "tanh"}),
    "batch-norm": ("mlp", {"norm": "batch", "activation": "silu"}),
    "skips": ("mlp", {"residual": True, "activation": "gelu"}),
    "siren": ("siren", {}),
    "fourier": ("fourier", {"frequencies": 8}),
    "resmlp": ("resmlp", {"width": 16}),
}


def predictor(name: str, *, scale: float = 1.0, depth: int = 2, steps: int = 0) -> Predictor:
    network, args = NETWORKS[name]
    depth += name == "skips"
    hidden = {} if network == "resmlp" or name == "linear" else {"hidden": [16] * depth}
    made = make_predictor(Saddle(), network, scale=scale, steps=steps, **{**hidden, **args})
    for module in made.model.modules():
        if isinstance(module, torch.nn.BatchNorm1d) and module.running_mean is not None:
            module.running_mean.uniform_(-1, 1)
    return made


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def boxes_of(space: Space, size: float, count: int, seed: int = 0) -> Boxes:
    random, whole = rng(seed), space.whole
    whole = whole.take(random.integers(0, len(whole), count))
    width = (whole.high - whole.low) * size
    low = whole.low + (whole.high - whole.low - width) * random.random(width.shape)
    return Boxes(low=low, high=np.minimum(low + width, whole.high), choice=whole.choice)


def points_of(boxes: Boxes, random: np.random.Generator, *, corners: bool) -> np.ndarray:
    share = random.random(boxes.low.shape)
    share = np.round(share) if corners else share
    return np.clip(boxes.low + (boxes.high - boxes.low) * share, boxes.low, boxes.high)


def away(bounds: Quadratics, boxes: Boxes, points: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Return by how much answers [N, T] are outside of their bounds."""
    shift = torch.from_numpy((points - boxes.centred[0]).T.copy())
    return np.abs(answers.T - bounds.at(shift).numpy()) - bounds.remainder.numpy()


@pytest.mark.parametrize(
    ("depth", "scale"), [(3, 1.0), (3, 5.0), (1, 300.0)], ids=["plain", "large", "huge"]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_answer_leaves_the_bounds(name: str, depth: int, scale: float) -> None:
    space = Space(Saddle().domain)
    side, random = NetworkSide(predictor(name, scale=scale, depth=depth), space), rng(1)
    boxes = Boxes.join([boxes_of(space, size, 24) for size in SIZES])
    bounds = side.over(boxes)
    assert not torch.isnan(bounds.remainder).any()
    for turn in range(4):
        points = points_of(boxes, random, corners=bool(turn % 2))
        found = away(bounds, boxes, points, side.at(points, boxes))
        assert not (found > 0).any(), boxes.high[found[0] > 0] - boxes.low[found[0] > 0]


@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_are_tight(name: str) -> None:
    """On a small box, what is left is rounding: float32's, and not much more."""
    space = Space(Saddle().domain)
    side = NetworkSide(predictor(name), space)
    for size, most in ((0.0, 2e-5), (1e-4, 3e-5), (1e-2, 2e-2)):
        assert side.over(boxes_of(space, size, 32)).remainder.max() < most


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_stay_within_their_quadratics(name: str) -> None:
    function = ACTIVATIONS[name]
    random = rng(0)
    count = 4000
    value = torch.from_numpy(random.normal(0, 3, (count, 1)))
    reach = torch.from_numpy(10.0 ** random.uniform(-6, 1.5, (count, 1)))
    linear = reach * torch.from_numpy(random.choice([0.0, 0.3, 1.0], (count, 1)))
    found = function.over(value, linear, reach - linear)
    for share in np.linspace(-1, 1, 41):
        at = value + share * reach
        moved = (at - value).clamp(-linear, linear)
        if isinstance(function, Smooth):
            truth = function.derivatives(at)[0]
        else:
            assert isinstance(function, Kink)
            truth = torch.where(at > 0, at, function.below * at)
        # The quadratic bends with the linear part alone, wherever in its reach that is.
        for part in (moved, moved.clamp(min=at - value - (reach - linear))):
            rest = at - value - part
            assert (rest.abs() <= reach - linear + 1e-12).all()
            bend = 0 if found.bend is None else found.bend
            model = found.value + found.slope * (at - value) + bend * part**2 / 2
            assert ((truth - model).abs() <= found.remainder).all()


@pytest.mark.parametrize(
    "name", sorted(name for name in ACTIVATIONS if isinstance(ACTIVATIONS[name], Smooth))
)
def test_constants_of_activations_bound_their_derivatives(name: str) -> None:
    function = ACTIVATIONS[name]
    assert isinstance(function, Smooth)
    # ELU has its derivatives on either side of 0.
    x = torch.linspace(-12, 12, 24_000, dtype=torch.float64).requires_grad_()
    found = function.derivatives(x)
    bounds = (math.inf, function.second, function.third, function.fourth)
    for place, bound in enumerate(bounds):
        slopes = torch.zeros_like(x)
        if found[place].requires_grad:
            (slopes,) = torch.autograd.grad(found[place].sum(), x, retain_graph=True)
        if place < 3:
            torch.testing.assert_close(slopes, found[place + 1], rtol=0, atol=1e-13)
        assert slopes.abs().max() <= bound + 1e-13


WEIGHT = torch.from_numpy(np.random.default_rng(7).normal(0, 1, (4, 3)))
ROW = WEIGHT[0] + 3
ALONE: dict[str, tuple[tuple[Operation, ...], Callable[[torch.Tensor], torch.Tensor]]] = {
    "linear": (
        (Linear(of=0, weight=WEIGHT, bias=WEIGHT[:, 0]),),
        lambda x: x @ WEIGHT.to(x).T + WEIGHT[:, 0].to(x),
    ),
    "linear without a bias": (
        (Linear(of=0, weight=WEIGHT, bias=0 * WEIGHT[:, 0]),),
        lambda x: x @ WEIGHT.to(x).T,
    ),
    "scale without a bias": (
        (Scale(of=0, weight=ROW, bias=0 * ROW, size=0 * ROW),),
        lambda x: x * ROW.to(x),
    ),
    "a small scale": (
        (Scale(of=0, weight=ROW * 1e-41, bias=0 * ROW, size=0 * ROW),),
        lambda x: x * (ROW * 1e-41).to(x),
    ),
    "scale": (
        (Scale(of=0, weight=ROW, bias=-ROW, size=ROW.abs()),),
        lambda x: x * ROW.to(x) - ROW.to(x),
    ),
    "tanh": ((Apply(of=0, function=ACTIVATIONS["tanh"]),), torch.tanh),
    "gelu": ((Apply(of=0, function=ACTIVATIONS["gelu"]),), torch.nn.functional.gelu),
    "softplus": ((Apply(of=0, function=ACTIVATIONS["softplus"]),), torch.nn.functional.softplus),
    "add": (
        (Apply(of=0, function=ACTIVATIONS["sine"]), Add(of=0, other=1)),
        lambda x: x + torch.sin(x),
    ),
    # A quarter of a number is exact: what is lost is lost in the sum.
    "add to a quarter": (
        (Apply(of=0, function=Kink(below=0.25, size=(0.0, 0.0))), Add(of=0, other=1)),
        lambda x: x + torch.where(x > 0, x, 0.25 * x),
    ),
    "multiply": (
        (Apply(of=0, function=ACTIVATIONS["sine"]), Multiply(of=0, other=1)),
        lambda x: x * torch.sin(x),
    ),
    "multiply the other way": (
        (Apply(of=0, function=ACTIVATIONS["sine"]), Multiply(of=1, other=0)),
        lambda x: torch.sin(x) * x,
    ),
    "square": ((Multiply(of=0, other=0),), lambda x: x * x),
    "multiply by one": (
        (Linear(of=0, weight=WEIGHT[:1], bias=WEIGHT[0, :1]), Multiply(of=0, other=1)),
        lambda x: x * (x @ WEIGHT[:1].to(x).T + WEIGHT[0, 0].to(x)),
    ),
    "concat": (
        (Apply(of=0, function=ACTIVATIONS["cosine"]), Concat(parts=(1, 0))),
        lambda x: torch.cat([torch.cos(x), x], 1),
    ),
}


@pytest.mark.parametrize("scale", [1.0, 1e-21, 1e-41])
@pytest.mark.parametrize("name", ALONE)
def test_every_operation_alone_stays_within_its_bounds(name: str, scale: float) -> None:
    """Without layers around it, whose slack would hide that something is forgotten.

    Among the smallest numbers, results are rounded absolutely.
    """
    operations, truth = ALONE[name]
    random, count = rng(0), 2000
    centre = torch.from_numpy(random.normal(0, 2 * scale, (3, count)))
    gradient = torch.from_numpy(random.normal(0, scale, (3, 2)))
    radius = torch.from_numpy(np.repeat(10.0 ** random.uniform(-7, 0, (1, count)), 2, axis=0))
    # Points that float32 holds leave the rounding of the operation itself.
    radius[:, ::3] = 0
    centre[:, ::3] = centre[:, ::3].float().double()
    size = centre.abs() + gradient.abs() @ radius
    size[:, ::3] = 0
    lost = size * 2.0**-24 + 2.0**-150 * (size > 0).double()
    features = Features(value=centre, gradient=gradient, remainder=lost, radius=radius)
    bounds = bound_network(Graph(operations=operations), features)
    for turn in range(6):
        share = torch.from_numpy(random.uniform(-1, 1, radius.shape))
        shift = radius * (share.sign() if turn % 2 else share)
        answer = truth((centre + gradient @ shift).T.float()).double().T
        assert ((answer - bounds.at(shift)).abs() <= bounds.remainder).all()


def test_a_layer_norm_alone_stays_within_its_bounds() -> None:
    """Of rows far from 0, whose variance is a small difference in some ways to sum it."""
    norm = torch.nn.LayerNorm(64)
    reader = _Reader()
    reader.add_module(norm, "norm", 0)
    random = rng(0)
    rows = 10.0 ** random.uniform(-2, 3, (400, 1)) + random.normal(0, 1, (400, 64))
    given = torch.from_numpy(rows.astype(np.float32))
    exact = given.double().T.contiguous()
    features = Features(
        value=exact,
        gradient=torch.zeros(64, 1, dtype=torch.float64),
        remainder=torch.zeros_like(exact),
        radius=torch.zeros(1, 400, dtype=torch.float64),
    )
    bounds = bound_network(Graph(operations=tuple(reader.operations)), features)
    mean = given.mean(1, keepdim=True)
    variance = (given.square().mean(1, keepdim=True) - mean.square()).clamp(min=0)
    for answer in (norm(given).detach(), (given - mean) / (variance + norm.eps).sqrt()):
        assert ((answer.double().T - bounds.value).abs() <= bounds.remainder).all()


ONE = torch.ones(1, 1, dtype=torch.float64)
OVERFLOWING: dict[str, tuple[float, float, tuple[Operation, ...]]] = {
    "sums": (2.0**125, 2.0**120, tuple(Add(of=place, other=place) for place in range(4))),
    "products": (2.0**64, 2.0**60, (Multiply(of=0, other=0),)),
    "an activation": (2.0**127, 2.0**125, (Apply(of=0, function=ACTIVATIONS["gelu"]),)),
    "a matrix": (2.0**120, 2.0**110, (Linear(of=0, weight=128 * ONE, bias=0 * ONE[0]),)),
    "a scale": (
        2.0**120,
        2.0**110,
        (Scale(of=0, weight=128 * ONE[0], bias=0 * ONE[0], size=0 * ONE[0]),),
    ),
}


@pytest.mark.parametrize("name", OVERFLOWING)
def test_what_overflows_is_not_bounded(name: str) -> None:
    far, near, operations = OVERFLOWING[name]

    def bounds(value: float) -> Quadratics:
        features = Features(value=value * ONE, gradient=0 * ONE, remainder=0 * ONE, radius=0 * ONE)
        return bound_network(Graph(operations=operations), features)

    assert bounds(far).remainder.isinf().all()
    assert bounds(near).remainder.isfinite().all()


def test_a_scale_that_float32_does_not_hold_is_not_bounded() -> None:
    """Times 0 it is no number."""
    scale = Scale(of=0, weight=2.0**130 * ONE[0], bias=0 * ONE[0], size=0 * ONE[0])
    nothing = Features(value=0 * ONE, gradient=0 * ONE, remainder=0 * ONE, radius=0 * ONE)
    assert bound_network(Graph(operations=(scale,)), nothing).remainder.isinf().all()


def test_float32_activations_keep_to_what_is_assumed() -> None:
    """The one assumption about torch's own kernels, wherever bounds are finite."""
    values = np.concatenate([s * 10.0 ** np.linspace(-44, 38.5, 100_001) for s in (-1, 1)])
    x = torch.from_numpy(values.astype(np.float32))
    near = x.abs() < HUGE
    kernels = {
        "elu": torch.nn.functional.elu,
        "gelu": torch.nn.functional.gelu,
        "mish": torch.nn.functional.mish,
        "sigmoid": torch.sigmoid,
        "silu": torch.nn.functional.silu,
        "softplus": torch.nn.functional.softplus,
        "tanh": torch.tanh,
        "sine": torch.sin,
        "cosine": torch.cos,
    }
    for name, kernel in kernels.items():
        scale, offset = ACTIVATIONS[name].size if name != "mish" else (1.0, 1.0)
        apart = (kernel(x).double() - kernel(x.double())).abs()
        allowed = 8 * 2.0**-24 * (scale * x.double().abs() + offset) + 2.0**-120
        assert (apart <= allowed)[near | (not scale)].all(), name


def test_the_inverse_root_of_a_variance() -> None:
    random = rng(0)
    value = torch.from_numpy(10.0 ** random.uniform(-5, 1, (2000, 1)))
    reach = torch.from_numpy(10.0 ** random.uniform(-9, 1.5, (2000, 1)))
    floor = 5e-6
    found = InverseRoot(floor=floor).over(value, reach, torch.zeros_like(reach))
    assert found.bend is not None
    for share in np.linspace(-1, 1, 41):
        at = (value + share * reach).clamp(min=floor)
        part = at - value.clamp(min=floor)
        model = found.value + found.slope * part + found.bend * part**2 / 2
        assert ((at.rsqrt() - model).abs() <= found.remainder).all()
    # What float32 makes of a number is within the bounds at that number alone.
    alone = value.float()
    point = InverseRoot(floor=floor).over(alone.double(), 0 * value, 0 * value)
    assert ((1 / alone.sqrt()).double() - point.value).abs().max() > 0
    assert (((1 / alone.sqrt()).double() - point.value).abs() <= point.remainder).all()


def test_discrete_inputs_are_one_domain_each() -> None:
    system = Waves()
    space = Space(system.domain)
    assert len(space.whole) == 6
    side = NetworkSide(make_predictor(system, hidden=[8, 8], activation="tanh"), space)
    random = rng(0)
    boxes = Boxes.join([boxes_of(space, size, 200) for size in SIZES])
    points = points_of(boxes, random, corners=False)
    assert not (away(side.over(boxes), boxes, points, side.at(points, boxes)) > 0).any()


class Own(torch.nn.Tanh):
    """Nobody knows what a subclass computes."""


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda network: network.__setitem__(1, Own()), r"network\.1 = 'Own': no bounds are known"),
        (
            lambda network: network[0].weight.data.fill_(np.nan),
            r"network\.0\.weight = 'not finite'",
        ),
        (lambda network: network[2].bias.data.fill_(np.inf), r"network\.2\.bias = 'not finite'"),
        (lambda network: network.__setitem__(1, torch.nn.GELU("tanh")), r"network\.1\.approximate"),
        (lambda network: network.half(), r"network\.0\.weight = torch\.float16"),
        (lambda network: network[1].register_forward_hook(print), r"network\.1 = 'hook'"),
        (lambda network: vars(network[1]).update(forward=abs), r"network\.1 = 'forward'"),
        (
            lambda network: network.__setitem__(1, torch.nn.LayerNorm(4, eps=1e-45)),
            r"network\.1\.eps = 1e-45: must be above",
        ),
    ],
    ids=["subclass", "nan", "inf", "approximate", "half", "hook", "forward", "epsilon"],
)
def test_what_has_no_bounds_is_refused_by_name(spoil, named: str) -> None:  # noqa: ANN001
    made = make_predictor(Saddle(), hidden=[4], activation="tanh")
    spoil(made.model.network)
    with pytest.raises(InvalidInput, match=named):
        NetworkSide(made, Space(Saddle().domain))


@pytest.mark.parametrize("width", [1, 2, 3, 8, 16, 64, 1000, 4096])
def test_a_layer_norm_of_float32_takes_its_moments_as_assumed(width: int) -> None:
    # Against float64, of what it gives back: rows of chance, with an offset, a spike, nearly flat.
    random = rng(width)
    rows = random.normal(0, 1, (400, width))
    rows[100:200] += 10.0 ** random.uniform(-3, 4, (100, 1))
    rows[200:300, random.integers(width)] += 10.0 ** random.uniform(0, 6, 100)
    rows[300:] = 1 + 1e-4 * rows[300:]
    given = torch.from_numpy(rows.astype(np.float32))
    exact, epsilon = given.double(), 1e-5
    _, mean, root = torch.native_layer_norm(given, [width], None, None, epsilon)
    gamma = (width + 8) * 2.0**-24
    square = exact.square().mean(1, keepdim=True)
    assert ((mean - exact.mean(1, keepdim=True)).abs() <= 4 * gamma * square.sqrt()).all()
    variance = exact.var(1, correction=0, keepdim=True)
    # The root that it gives back is rounded as well.
    assert ((root.double() ** -2 - epsilon - variance).abs() <= 5 * gamma * square + 1e-11).all()


def line(slope: float, offset: float = 0.0) -> torch.nn.Linear:
    layer = torch.nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(slope)
        layer.bias.fill_(offset)
    return layer


def batch_norm(weight: float) -> torch.nn.Module:
    layer = torch.nn.BatchNorm1d(1)
    with torch.no_grad():
        layer.weight.fill_(weight)
    return torch.nn.Sequential(line(1e30), layer, line(1e12))


def far_batch_norm() -> torch.nn.Module:
    layer = torch.nn.BatchNorm1d(1)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.fill_(1000.0)
    layer.running_var.fill_(1e-6)
    return layer


def layer_norm(size: float) -> torch.nn.Module:
    torch.manual_seed(0)
    first = torch.nn.Linear(1, 64)
    with torch.no_grad():
        first.weight.normal_().mul_(size)
        first.bias.zero_()
    return torch.nn.Sequential(first, torch.nn.LayerNorm(64), torch.nn.Linear(64, 1))


EDGES: dict[str, tuple[float, float, Callable[[], Predictor]]] = {
    "features that overflow are 0": (
        0.0,
        1e10,
        lambda: plain_predictor(line(1e-12, 3.0), std=1e-30),
    ),
    "differences that overflow are 0": (
        -7e37,
        7e37,
        lambda: plain_predictor(line(1.0, 3.0), mean=-3e38, std=1e38),
    ),
    "inputs below the normal numbers": (
        0.0,
        1e-40,
        lambda: plain_predictor(line(100.0), mean=5e-41, std=1e-38),
    ),
    "few inputs below the normal numbers": (
        1e-44,
        3e-44,
        lambda: plain_predictor(line(1e6), std=1e-37),
    ),
    "features that cancel": (
        999.9,
        1000.1,
        lambda: plain_predictor(torch.nn.Identity(), mean=1000.00001, std=0.1),
    ),
    "a scale below the normal numbers": (
        -7e37,
        7e37,
        lambda: plain_predictor(line(1.0), std=3e38),
    ),
    "answers below the normal numbers": (
        0.0,
        1.0,
        lambda: plain_predictor(line(1e30), target=(0.0, 1e-44)),
    ),
    "a batch norm that overflows": (0.0, 1.0, lambda: plain_predictor(batch_norm(1e38))),
    "a batch norm below the normal numbers": (
        0.0,
        1.0,
        lambda: plain_predictor(batch_norm(1e-41)),
    ),
    "a batch norm of a large mean": (999.9, 1000.1, lambda: plain_predictor(far_batch_norm())),
    "a variance that overflows": (0.5, 1.0, lambda: plain_predictor(layer_norm(4e18))),
    "a layer that works in place": (
        -1.0,
        1.0,
        lambda: plain_predictor(
            torch.nn.Sequential(
                line(1.0),
                Residual(torch.nn.Sequential(torch.nn.ReLU(inplace=True), line(0.0))),
            )
        ),
    ),
}


@pytest.mark.parametrize("name", EDGES)
def test_bounds_hold_at_the_edges_of_float32(name: str) -> None:
    low, high, make = EDGES[name]
    space = Space(Line(low, high).domain)
    side, random = NetworkSide(make(), space), rng(2)
    boxes = Boxes.join([boxes_of(space, size, 64) for size in (1.0, 0.1, 1e-3, 0.0)])
    bounds = side.over(boxes)
    known = np.isfinite(bounds.remainder.numpy())
    for turn in range(4):
        points = points_of(boxes, random, corners=bool(turn % 2))
        answers = side.at(points, boxes)
        # Without bounds nothing is claimed, and an answer that is no number is in no bounds.
        assert not known[:, np.isnan(answers[:, 0])].any()
        found = away(bounds, boxes, points, np.nan_to_num(answers))
        assert not (known & (found > 0)).any()


def test_what_is_assumed_of_layer_norms_is_said_of_networks_that_have_one() -> None:
    space = Space(Saddle().domain)
    said = {name: NetworkSide(predictor(name), space).assumptions for name in NETWORKS}
    assert {name for name in said if "layer norm" in " ".join(said[name])} == {"layer-norm"}
