"""The tasks of kronfluence 1.0.1, in its own environment."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from harness import Answer, serve
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from workloads import Workload


class Classification(Task):
    """The sum of the cross-entropies of a batch, at labels sampled from the model where asked."""

    def compute_train_loss(
        self, batch: tuple[Tensor, Tensor], model: nn.Module, sample: bool = False
    ) -> Tensor:
        x, y = batch
        logits = model(x)
        if sample:
            y = torch.multinomial(logits.detach().softmax(dim=1), 1).flatten()
        return nn.functional.cross_entropy(logits, y, reduction="sum")

    def compute_measurement(self, batch: tuple[Tensor, Tensor], model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)


def ekfac(work: Workload, _options: Mapping[str, Any]) -> Answer:
    """Fit and score EK-FAC; hand the factors over, so that the scores can be checked."""
    answer, task = Answer(), Classification()
    fit, train, test = (
        TensorDataset(*points) for points in ((work.x_fit, work.y_fit), work.train, work.test)
    )
    damping = ScoreArguments(damping_factor=work.regularization)
    with tempfile.TemporaryDirectory() as folder:
        model = prepare_model(work.double().model.float(), task)
        analyzer = Analyzer(
            "digits", model, task, cpu=True, disable_tqdm=True, output_dir=folder,
            log_level=logging.ERROR,
        )  # fmt: skip
        with answer.phase("fit"):
            analyzer.fit_all_factors(
                "ekfac", fit, per_device_batch_size=work.batch,
                factor_args=FactorArguments(strategy="ekfac"),
            )  # fmt: skip
        with answer.phase("scores"):
            analyzer.compute_pairwise_scores(
                "scores", "ekfac", query_dataset=test, train_dataset=train,
                per_device_query_batch_size=len(test), per_device_train_batch_size=work.batch,
                score_args=damping,
            )  # fmt: skip
        answer.arrays["scores"] = analyzer.load_pairwise_scores("scores")["all_modules"].numpy()
        _hand_over(analyzer, answer)
    return answer


def _hand_over(analyzer: Analyzer, answer: Answer) -> None:
    bases = analyzer.load_eigendecomposition("ekfac")
    measured = analyzer.load_lambda_matrices("ekfac")
    for name, sums in measured["lambda_matrix"].items():
        count = measured["num_lambda_processed"][name]
        for kind, key in (
            ("inputs", "activation_eigenvectors"), ("outputs", "gradient_eigenvectors")
        ):  # fmt: skip
            answer.arrays[f"{name}/{kind}"] = bases[key][name].float().T.contiguous().numpy()
        answer.arrays[f"{name}/values"] = (sums / count).numpy()


if __name__ == "__main__":
    serve({"ekfac": ekfac})
