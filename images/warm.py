"""Run once what every step does first, so that the image contains its bytecode.

tests/container shows that our modules import none without it.
"""

from dataclasses import dataclass

import botocore.session
import google.cloud.storage
import google_crc32c
import jinja2
import kfp.dsl.executor_main
import matplotlib.pyplot
import pandas
import PIL.ImageOps
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet
import safetensors.torch
import scipy.stats
import sklearn.datasets
import torch
import torch.utils.flop_counter
from pydantic import BaseModel, PlainSerializer, TypeAdapter

assert all((google.cloud.storage, kfp.dsl.executor_main, matplotlib.pyplot, pandas))
assert all((google_crc32c, pyarrow.csv, pyarrow.dataset, pyarrow.parquet, safetensors.torch))
assert all((PIL.ImageOps, scipy.stats, sklearn.datasets, torch.utils.flop_counter, PlainSerializer))
assert botocore.session.get_session().create_client("s3", region_name="us-east-1")


class Settings(BaseModel):
    """A model, because pydantic imports most of itself only when there is one."""

    number: int = 1


@dataclass(frozen=True)
class Record:
    """A dataclass that is read from JSON, for which pydantic imports yet more."""

    settings: Settings


read = TypeAdapter(Record).validate_json('{"settings": {"number": 1}}')
assert read == Record(settings=Settings())

assert jinja2.Environment(autoescape=True).from_string("{{ 1 }}").render() == "1"

network = torch.nn.Linear(2, 1)
optimizer = torch.optim.AdamW(network.parameters(), fused=True)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)
network(torch.ones(4, 2)).sum().backward()
optimizer.step()
schedule.step()
