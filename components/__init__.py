"""The components: what Kubeflow sees. Each is a signature, a docstring and one runtime call."""

from .continuous_eval import continuous_eval
from .finetune_fresh import finetune_fresh
from .gather_shards import gather_shards
from .generate_synthetic import generate_synthetic
from .import_dataset import import_dataset
from .label_with_teacher import label_with_teacher
from .plan_shards import plan_shards
from .select_checkpoint import select_checkpoint
from .train_student import train_student
from .train_teacher import train_teacher

__all__ = [
    "continuous_eval",
    "finetune_fresh",
    "gather_shards",
    "generate_synthetic",
    "import_dataset",
    "label_with_teacher",
    "plan_shards",
    "select_checkpoint",
    "train_student",
    "train_teacher",
]
