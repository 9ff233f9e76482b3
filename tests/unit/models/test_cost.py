from __future__ import annotations

from typing import Any

import pytest
from model_samples import image_schema, images, make_model

from kubestill.runtime.models.cost import flops_per_example


@pytest.mark.parametrize(
    ("options", "flops"),
    [
        pytest.param({"network_args": {"hidden": [10]}}, 2 * (64 * 10 + 10 * 4), id="mlp"),
        pytest.param(
            {"network": "own_networks:TinyConv"}, 2 * (64 * 9 * 4 + 4 * 4), id="convolution"
        ),
    ],
)
def test_flops_count_two_for_a_multiply_add(options: dict[str, Any], flops: int) -> None:
    assert flops_per_example(make_model(image_schema(8, 8), images(8, 8), **options)) == flops
