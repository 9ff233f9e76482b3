"""How every task of our pipelines fails, retries and caches."""

from kfp.dsl import PipelineTask


def resilient(task: PipelineTask) -> PipelineTask:
    """Retry the task, without a deadline that a long training would miss, and never skip it.

    Argo counts the backoff's maximum from the start of the first attempt: with Kubeflow's default
    of an hour a long training is never retried (kubeflow/pipelines#13452), so it is set to 48.
    Kubeflow's cache keys hold no content: a source that changed would go unnoticed, so it is off.
    """
    task.set_retry(
        num_retries=3,
        backoff_duration="30s",
        backoff_factor=2.0,
        backoff_max_duration="172800s",
    )
    return task.set_caching_options(enable_caching=False)
