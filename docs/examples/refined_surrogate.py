"""Refine a surrogate in rounds: add rows where its error is largest, and train again.

Kubeflow fixes a graph when it is compiled, so the rounds are a loop in Python. Each round keeps the
rows of those before it.
"""

from kfp import compiler, dsl

from kubestill.components import certify_surrogate, generate_synthetic, train_student

ROUNDS = 2


def overfit(covered, steps, tolerance, checkpoint_uri):
    """Train on all rows so far."""
    return train_student(
        dataset=covered.outputs["dataset"],
        mode="overfit",
        network_args={"hidden": [48, 48], "activation": "tanh"},
        steps=steps,
        batch_size=512,
        learning_rate=0.004,
        tolerance=tolerance,
        checkpoint_uri=checkpoint_uri,
    )


@dsl.pipeline(name="refined-surrogate")
def refined_surrogate(
    system: str = "black-scholes",
    rows: int = 8192,
    more_rows: int = 4096,
    steps: int = 4000,
    tolerance: float = 0.0,
    checkpoint_uri: str = "",
):
    """Cover and train, add rows where the error is largest and train again; certify the last."""
    covered = generate_synthetic(system=system, rows=rows)
    student = overfit(covered, steps, tolerance, checkpoint_uri)
    for number in range(ROUNDS):
        covered = generate_synthetic(
            system=system,
            method="adaptive",
            rows=more_rows,
            original=covered.outputs["dataset"],
            model=student.outputs["model"],
            seed=number + 1,
        )
        student = overfit(covered, steps, tolerance, checkpoint_uri)
    certify_surrogate(
        model=student.outputs["model"],
        dataset=covered.outputs["dataset"],
        tolerance=tolerance,
        strict=False,
    )


if __name__ == "__main__":
    compiler.Compiler().compile(refined_surrogate, "refined_surrogate.yaml")
