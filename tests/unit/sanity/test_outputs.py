"""Which last layers keep a network from its task, over every task and kind of column.

The truth is the definition of each end: what it can put out, against what the task's loss wants.
"""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kubestill.runtime.models.embed import Embed
from kubestill.runtime.sanity.batch import make_batch
from kubestill.runtime.sanity.contract import right_answers
from kubestill.runtime.sanity.network import check_outputs

ENDS: dict[str, tuple[Any, str]] = {
    "none": (lambda y: y, "regression binary multiclass"),
    "leaky relu": (F.leaky_relu, "regression binary multiclass"),
    "log-softmax": (lambda y: y.log_softmax(1), "multiclass"),
    "softmax": (lambda y: y.softmax(1), ""),
    "sigmoid": (torch.sigmoid, ""),
    "tanh": (torch.tanh, ""),
    "hardtanh": (F.hardtanh, ""),
    "relu": (torch.relu, "multiclass"),
    "minus relu": (lambda y: -torch.relu(y), "multiclass"),
    "softplus": (F.softplus, "multiclass"),
    "log-sigmoid": (F.logsigmoid, "multiclass"),
    "exp": (torch.exp, "multiclass"),
    "elu": (F.elu, "multiclass"),
}
"""Each with the tasks that a network which ends so can learn to the floor of their loss."""

COLUMNS = {
    "numbers": (3, ()),
    "a large category": (0, (17,)),
    "both": (3, (17, 40)),
}
"""Plain features, and the categories of each column of codes behind them."""


class Ended(nn.Module):
    def __init__(self, width: int, outputs: int, end: Any, *, zero: bool):
        super().__init__()
        self.body, self.head, self.end = nn.Linear(width, 32), nn.Linear(32, outputs), end
        if zero:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.end(self.head(self.body(features).relu()))


def targets(task: str, rows: int, outputs: int) -> torch.Tensor:
    if task == "multiclass":
        return torch.arange(rows) % outputs
    values = torch.randn(rows, outputs)
    return values if task == "regression" else (values > 0).float()


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("columns", COLUMNS)
def test_a_last_layer_passes_if_and_only_if_it_can_give_what_the_task_wants(
    columns: str, outputs: int
) -> None:
    torch.manual_seed(0)
    plain, vocabulary = COLUMNS[columns]
    codes = [torch.randint(0, n + 1, (48, 1)).float() for n in vocabulary]
    features = torch.cat([torch.randn(48, plain), *codes], 1)
    for task, end, zero in itertools.product(
        ("regression", "binary") if outputs == 1 else ("regression", "multiclass"),
        ENDS,
        (False, True),
    ):
        if outputs == 1 and "softmax" in end:
            continue  # a constant
        embed = Embed(features.shape[1], vocabulary)
        function, able = ENDS[end]
        ended = Ended(embed.out_features, outputs, function, zero=zero)
        network = nn.Sequential(embed, ended) if vocabulary else ended
        batch = make_batch(features, (targets(task, 48, outputs),))
        wanted = right_answers(batch, task=task, outputs=outputs, temperature=1.0)
        check = check_outputs(network, batch, task, wanted)
        if end == "log-softmax" and task == "regression":
            continue  # unable, and without an end that shows
        expected = "ok" if task in able else "fail"
        assert check.status == expected, (task, end, zero, check)


@pytest.mark.parametrize(("size", "status"), [(1.0, "ok"), (1.5, "fail")])
def test_a_cap_that_leaves_room_for_the_targets_is_none(size: float, status: str) -> None:
    torch.manual_seed(0)
    batch = make_batch(torch.randn(48, 3), (size * torch.randn(48, 1).sign(),))
    wanted = right_answers(batch, task="regression", outputs=1, temperature=1.0)
    ended = Ended(3, 1, torch.tanh, zero=False)
    assert check_outputs(ended, batch, "regression", wanted).status == status


def test_a_network_that_takes_whole_numbers_alone_is_looked_at_where_it_can_be() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(5, 3)

    class Coded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = table

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.table(features[:, 0].long())

    batch = make_batch(torch.arange(48.0)[:, None] % 5, (torch.arange(48) % 3,))
    assert check_outputs(Coded(), batch, "multiclass", None).status == "ok"
