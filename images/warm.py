"""Do once what every step does first, so that its bytecode is in the image."""

import botocore.session
import google.cloud.storage
import kfp.dsl.executor_main
import matplotlib.pyplot
import pandas
import pyarrow.dataset
import pyarrow.parquet
import pydantic
import safetensors.torch
import scipy.stats
import sklearn.datasets
import torch

assert all((google.cloud.storage, kfp.dsl.executor_main, matplotlib.pyplot, pandas))
assert all((pyarrow.dataset, pyarrow.parquet, pydantic, safetensors.torch, scipy.stats))
assert sklearn.datasets
assert botocore.session.get_session().create_client("s3", region_name="us-east-1")

network = torch.nn.Linear(2, 1)
optimizer = torch.optim.AdamW(network.parameters(), fused=True)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)
network(torch.ones(4, 2)).sum().backward()
optimizer.step()
schedule.step()
