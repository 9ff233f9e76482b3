"""Join several process groups in turn, where each rank is late for every other one, or missing."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from kubestill.runtime.training.distributed import exchanges_within, process_group

for group in range(4):
    if group % 2 == int(os.environ["RANK"]):
        time.sleep(0.3)
    with process_group():
        ranks = torch.ones(())
        dist.all_reduce(ranks)
        assert ranks == 2

with process_group():
    # Without a limit this would take as long as another may take to start.
    with exchanges_within(0.3):
        if os.environ["RANK"] == "1":
            with pytest.raises(RuntimeError, match="Timed out"):
                dist.all_reduce(ranks)
        else:
            time.sleep(1.0)
