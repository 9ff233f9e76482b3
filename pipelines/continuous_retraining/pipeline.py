"""Keep a model fresh: detect decay, retrain, and promote only what is proven better."""

from kfp import dsl, kubernetes

from kubestill.components import (
    collect_fresh,
    continuous_eval,
    finetune_fresh,
    open_champion,
    overfit_batch,
    promote_model,
    record_outcome,
    train_teacher,
)
from kubestill.components._image import IMAGE
from kubestill.pipelines._policy import Tasks, group

RUN = dsl.PIPELINE_JOB_ID_PLACEHOLDER


@dsl.pipeline(name="continuous-retraining")
def continuous_retraining(
    source: str,
    timestamp: str,
    target: str,
    registry: str,
    as_of: str = "",
    since: str = "",
    label_delay_hours: float = 0.0,
    task: str = "auto",
    features: list = [],
    kinds: dict = {},
    keys: list = [],
    golden_source: str = "",
    min_rows: int = 200,
    judge_fraction: float = 0.3,
    validation_fraction: float = 0.15,
    lease_hours: float = 12.0,
    collect_settings: dict = {},
    network: str = "tabm",
    network_args: dict = {},
    epochs: float = 20.0,
    batch_size: int = 128,
    learning_rate: float = 0.004,
    training_settings: dict = {},
    gate: dict = {},
    strict: bool = True,
    finetune_epochs: float = 20.0,
    finetune_learning_rate: float = 0.004,
    replay_rows: int = 1000000,
    replay_share: float = 0.99,
    shrink: float = 0.0,
    perturb: float = 0.0,
    finetune_settings: dict = {},
    rebuild_after: int = 3,
    refit: bool = True,
    thresholds: dict = {},
    slices: list = [],
    evaluation_settings: dict = {},
    model_registry: str = "",
    model_name: str = "",
    notify: str = "",
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
    """Judge the champion on the rows that arrived, and replace it where it has decayed.

    The first run trains a champion from scratch. Every later run judges it on rows that no model
    has seen. Only if it has decayed, or many rows wait to be learned from, is a challenger trained:
    from scratch, or with `shrink` above 0 from the champion's state before overfitting. The
    challenger is promoted only if it is proven better on rows that neither model has seen, and
    forgets no more on the golden rows than that is worth. However the run ends, its outcome is
    written to the registry's history, and no row is lost or counted twice: the rows of a failed run
    go to the next one.

    Args:
        source: Parquet or CSV where new rows arrive: a folder or a glob; local, gs:// or s3://.
        timestamp: Column with the time of each row.
        target: Column to predict.
        registry: Folder of champions, windows and history, one for each model; local, gs:// or
            s3://.
        as_of: Take rows from before this date or time, to replay history; empty means now.
        since: Never take rows from before this date or time.
        label_delay_hours: Time that labels take to arrive: newer rows are left to the next run.
        task: `regression`, `binary`, `multiclass`, or `auto` to infer it from the target.
        features: Columns to learn from; empty uses all but target and timestamp.
        kinds: Overrides by column: `numeric`, `boolean`, `categorical`, `tensor` or `text`.
        keys: Columns that identify a row; empty uses all columns, and how often a file has the row.
        golden_source: Parquet or CSV of fixed rows on which no challenger may get worse; empty
            uses the rows that judged the first champion, which count for less as they age.
        min_rows: With fewer fresh rows, all of them wait for the next run.
        judge_fraction: Share of the fresh rows, the latest, that judge the challenger, which does
            not learn from them; with `refit`, what is promoted does.
        validation_fraction: Share of the fresh rows for early stopping and selection.
        lease_hours: Time after which a run that holds its window is presumed dead.
        collect_settings: Further options of collect-fresh.
        network: `tabm`, another built-in name, or an import path such as `my_pkg.nets:Net`.
        network_args: Keyword arguments of the network.
        epochs: Passes over the rows in the first run, which trains from scratch.
        batch_size: Rows per step, in both kinds of training run.
        learning_rate: Peak learning rate of the first run.
        training_settings: Further settings of the first run's training.
        gate: Options of the check before that training; see overfit-batch.
        strict: Stop if that check does not pass.
        finetune_epochs: Passes of a challenger over the fresh rows and the older ones mixed in.
        finetune_learning_rate: Peak learning rate of a challenger.
        replay_rows: Size of the sample of older rows that can be mixed in.
        replay_share: Share of the mix that is older rows, to prevent forgetting; all of the sample
            is taken where that is less. 0 turns it off.
        shrink: Factor on the champion's weights before a challenger learns (Ash & Adams 2020): 0
            trains each challenger from scratch, 1 goes on from the champion's weights, which is
            cheaper with fewer epochs and a smaller `replay_share`.
        perturb: Share of a fresh initialisation that is added to them; 0 turns it off.
        finetune_settings: Further settings of fine-tuning.
        rebuild_after: Challengers that may lose, after a promotion, before one is trained from
            scratch on all rows; 0 never does that.
        refit: Trains a model that is to be promoted once more, as long as before and with the rows
            that judged it as well, and promotes that; false promotes it as it was judged.
        thresholds: Limits by metric for champion and challenger.
        slices: Columns by whose values the scores are broken down.
        evaluation_settings: Further options of continuous-eval.
        model_registry: Address of the Kubeflow Model Registry where promoted models are registered;
            empty skips registration.
        model_name: Name of the model there; empty uses the last folder of `registry`.
        notify: Address of an HTTP webhook that gets promotions, rejections, failures and
            unfit rows; empty takes that of the last step's environment variable KUBESTILL_NOTIFY.
        seed: Seeds splits and training runs.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        checkpoint_uri: Root of the checkpoints, local, gs:// or s3://.
        image: Image of the small steps.
        gpu_image: Image of the steps with a device: training, labelling and gates.
        cpu: CPUs that each step with a device requests.
        memory: Memory that each step with a device requests, which is also its limit.
        accelerator: Resource name of the accelerator in Kubernetes.
        accelerators: Number of accelerators for each such step; empty means CPUs only.
        node_selector: Labels of the nodes that such steps run on.
        tolerations: Taints that such steps tolerate, such as those of spot nodes.
    """
    step = Tasks(locals())

    def judge(trained, *, name, better, promote, against={}, **started):
        """Judge a newly trained model; if the verdict says so, train it with all rows and promote.

        Args:
            trained: The task that trained it.
            name: Of the task that judges.
            better: Name of the branch that promotes.
            promote: Name of the task that promotes.
            against: Artifacts that the model is judged against.
            **started: What fine-tuning started from and mixed in.
        """
        judged = step(
            continuous_eval,
            prefix="evaluation_",
            name=name,
            model=trained.outputs["model"],
            dataset=collected.outputs["holdout"],
            run_id=RUN,
            step="challenge",
            **against,
        )
        with group(dsl.If(judged.outputs["decision"] == "promote", name=better)):
            step(
                promote_model,
                name=promote,
                model=trained.outputs["model"],
                ledger=trained.outputs["ledger"],
                record=judged.outputs["record"],
                whole=collected.outputs["whole"],
                run_id=RUN,
                **started,
            )

    ended = step(record_outcome, run_id=RUN)
    with group(dsl.ExitHandler(ended, name="retraining")):
        collected = step(collect_fresh, prefix="collect_", run_id=RUN)
        # With several users, this label gives the pod a token for Kubeflow's API: it asks there
        # whether the run that holds a claim is over.
        kubernetes.add_pod_label(collected, "access-ml-pipeline", "true")
        learned = {port: collected.outputs[port] for port in ("dataset", "validation")}
        with group(dsl.If(collected.outputs["status"] == "ready", name="champion")):
            champion = step(open_champion, run_id=RUN)
            judged = step(
                continuous_eval,
                prefix="evaluation_",
                name="judge-champion",
                model=champion.outputs["model"],
                dataset=collected.outputs["fresh"],
                unlabelled=collected.outputs["unlabelled"],
                run_id=RUN,
                step="judge",
            )
            with group(dsl.If(judged.outputs["decision"] == "degraded", name="degraded")):
                against = {
                    "baseline": champion.outputs["model"],
                    "golden": champion.outputs["golden"],
                }
                # Branches cannot hand an artifact to one step after both, so each judges its own.
                with group(dsl.If(collected.outputs["method"] == "fine-tune", name="fine-tune")):
                    started = {
                        "checkpoint": champion.outputs["checkpoint"],
                        "replay": collected.outputs["replay"],
                    }
                    tuned = step(
                        finetune_fresh,
                        prefix="finetune_",
                        **learned,
                        **started,
                        experiment="finetune",
                    )
                    judge(
                        tuned,
                        name="judge-challenger",
                        better="better",
                        promote="promote-model",
                        against=against,
                        **started,
                    )
                with group(dsl.If(collected.outputs["method"] == "rebuild", name="rebuild")):
                    rebuilt = step(
                        train_teacher,
                        prefix="training_",
                        name="train-anew",
                        **learned,
                        experiment="rebuild",
                    )
                    judge(
                        rebuilt,
                        name="judge-rebuilt",
                        better="better-anew",
                        promote="promote-rebuilt",
                        against=against,
                    )
        with group(dsl.If(collected.outputs["status"] == "late", name="labels-late")):
            # The run holds no window: it asks the registry only.
            standing = step(open_champion, name="open-standing", run_id="")
            step(
                continuous_eval,
                prefix="evaluation_",
                name="expect",
                model=standing.outputs["model"],
                dataset=collected.outputs["unlabelled"],
                run_id=RUN,
                step="expect",
            )
        with group(dsl.If(collected.outputs["status"] == "bootstrap", name="bootstrap")):
            sound = step(overfit_batch, prefix="training_", **learned)
            first = step(
                train_teacher,
                prefix="training_",
                name="train-first",
                **learned,
                experiment="first",
            ).after(sound)
            judge(
                first,
                name="judge-first",
                better="good-enough",
                promote="promote-first",
            )
