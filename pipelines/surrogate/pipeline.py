"""Turn a solver or a table into a network, with a certificate."""

from kfp import dsl

from kubestill.components import (
    certify_surrogate,
    gather_shards,
    generate_synthetic,
    overfit_batch,
    plan_shards,
    train_student,
)
from kubestill.components._image import IMAGE
from kubestill.pipelines._policy import Tasks, group, parallelism


@dsl.pipeline(name="surrogate")
def surrogate(
    system: str = "heat",
    system_args: dict = {},
    method: str = "auto",
    rows: int = 32768,
    shards: int = 2,
    covering: dict = {},
    on_failure: str = "stop",
    network: str = "mlp",
    network_args: dict = {"hidden": [64, 64, 64], "activation": "tanh"},
    steps: int = 6000,
    batch_size: int = 1024,
    learning_rate: float = 0.004,
    student_settings: dict = {},
    assurance: str = "auto",
    tolerance: float = 0.0,
    statistic: str = "max",
    samples: int = 20_000,
    exceptions: bool = False,
    certificate_settings: dict = {},
    gate: dict = {},
    strict: bool = True,
    seed: int = 0,
    device: str = "auto",
    checkpoint_uri: str = "",
    image: str = IMAGE,
    gpu_image: str = IMAGE,
    cpu: str = "2",
    memory: str = "4Gi",
    accelerator: str = "nvidia.com/gpu",
    accelerators: str = "",
    node_selector: dict = {},
    tolerations: list = [],
):
    """Cover a system's domain, overfit a network to its exact solutions, and certify the result.

    Nothing is held out and nothing is regularised: if labels carry no noise and the rows cover the
    whole domain, nothing unseen is left to generalise to. The certificate says whether that holds,
    how large the network's error is, and what that rests on: every point of a finite domain, a
    proof, or random points.

    Args:
        system: A built-in such as `heat`, `black-scholes` or `table`, or `package.module:Name`.
        system_args: Arguments of the system.
        method: `grid`, `sobol`, `latin-hypercube` or `random`; `auto` uses the whole grid if every
            input is discrete, else `sobol`.
        rows: Solutions in total; the grid of discrete inputs determines its own number.
        shards: Tasks that solve in parallel.
        covering: Options of the method, such as `{"points": 33}` for a grid.
        on_failure: What to do about inputs on which the system raises or gives no finite answer:
            `stop`, or `leave-out` them. The verdict then holds for the other inputs, and says so.
        network: `mlp`, another built-in name, or an import path such as `my_pkg.nets:Net`.
        network_args: Keyword arguments of the network.
        steps: Optimizer steps at most.
        batch_size: Rows per step.
        learning_rate: Peak learning rate.
        student_settings: Further settings of the training run.
        assurance: What the certificate has to rest on: `enumerated`, `proven` or `sampled`; less
            is refused. `auto` takes `enumerated` where the domain is finite, else `sampled`.
        tolerance: Largest error allowed, in the output's own unit; for classes the share of the
            domain that may disagree. 0 states no tolerance, and the verdict is `measured`; only
            for classes on a finite domain it requires every point to agree. Training stops at
            half of it, or at `student_settings.tolerance`.
        statistic: `max`, `p999` or `mean`: the error that is compared with the tolerance; of
            random points, its upper bound.
        samples: Random points for the error between the rows.
        exceptions: Classes on a finite domain only: store every point that disagrees, and count it
            in the size.
        certificate_settings: Further options of certify-surrogate.
        gate: Options of the check before training; see overfit-batch.
        strict: Stop if that check does not pass, and fail if the certificate is refused.
        seed: Seeds the covering, the training run and the random points.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        checkpoint_uri: Root of the checkpoints, local, gs:// or s3://, and of the rows that a slow
            system has solved: no retry, repetition or later step solves them again.
        image: Image of the small steps.
        gpu_image: Image of the steps with a device: the gate and the training run.
        cpu: CPUs that each step with a device requests.
        memory: Memory that each step with a device requests, which is also its limit.
        accelerator: Resource name of the accelerator in Kubernetes.
        accelerators: Number of accelerators for each such step; empty means CPUs only.
        node_selector: Labels of the nodes that such steps run on.
        tolerations: Taints that such steps tolerate, such as those of spot nodes.
    """
    step = Tasks(locals())
    plan = step(plan_shards, settings=covering)
    shard_loop = dsl.ParallelFor(plan.output, name="shards", parallelism=parallelism())
    with group(shard_loop) as shard:
        solved = step(generate_synthetic, shard=shard, settings=covering)
    gathered = step(gather_shards, uris=dsl.Collected(solved.outputs["dataset_uri"]))
    rows_solved = gathered.outputs["dataset"]
    sound = step(overfit_batch, prefix="student_", dataset=rows_solved, mode="overfit")
    student = step(
        train_student,
        prefix="student_",
        dataset=rows_solved,
        mode="overfit",
        experiment="surrogate",
    ).after(sound)
    step(
        certify_surrogate,
        prefix="certificate_",
        model=student.outputs["model"],
        dataset=rows_solved,
        # The dataset says which system labelled it.
        leave=["system", "system_args"],
    )
