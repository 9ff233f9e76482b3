"""The components as Kubeflow sees them: each a signature, a docstring and one runtime call."""

from ._command import leave_out_descriptions, name_instead_of_source
from .certify_surrogate import certify_surrogate
from .check_distillation import check_distillation
from .choose_student import choose_student
from .collect_fresh import collect_fresh
from .continuous_eval import continuous_eval
from .finetune_fresh import finetune_fresh
from .gather_shards import gather_shards
from .generate_synthetic import generate_synthetic
from .import_dataset import import_dataset
from .import_model import import_model
from .label_with_teacher import label_with_teacher
from .open_champion import open_champion
from .overfit_batch import overfit_batch
from .plan_shards import plan_shards
from .promote_model import promote_model
from .quantise_model import quantise_model
from .record_outcome import record_outcome
from .select_checkpoint import select_checkpoint
from .train_student import train_student
from .train_teacher import train_teacher

__all__ = [
    "certify_surrogate",
    "check_distillation",
    "choose_student",
    "collect_fresh",
    "continuous_eval",
    "finetune_fresh",
    "gather_shards",
    "generate_synthetic",
    "import_dataset",
    "import_model",
    "label_with_teacher",
    "open_champion",
    "overfit_batch",
    "plan_shards",
    "promote_model",
    "quantise_model",
    "record_outcome",
    "select_checkpoint",
    "train_student",
    "train_teacher",
]

for _component in __all__:
    name_instead_of_source(globals()[_component])
    leave_out_descriptions(globals()[_component])
