"""Tasks of the model: what it is trained for, evaluated on and asked. A task is a folder, and a row of ``TASKS``.

Stages, jobs, commands, routes, OpenAPI and the client are driven by this table. It names the parts of a task without
importing them: a service has no training libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cytoray.errors import RequestError
from cytoray.tasks.spec import Lazy, TaskAssessment, TaskAttachment, TaskOffline, TaskSpec, TaskStage

if TYPE_CHECKING:
    from cytoray.tasks.endpoint import Endpoint

TASKS: dict[str, TaskSpec] = {
    "pretraining": TaskSpec(
        "pretraining",
        learning=TaskStage(
            "pretrain",
            "Pretrain a model on a corpus.",
            config=Lazy("cytoray.training.config", "PretrainConfig"),
            run=Lazy("cytoray.tasks.pretraining.learning", "run_pretraining"),
            from_card={"held_out": "scores"},
        ),
    ),
    "embedding": TaskSpec(
        "embedding",
        endpoint=Lazy("cytoray.tasks.embedding.answers", "ENDPOINT"),
        offline=TaskOffline("embed", "Embed and annotate the cells of files offline; a killed run continues."),
    ),
    "annotation": TaskSpec(
        "annotation",
        learning=TaskStage(
            "finetune",
            "Fine-tune a pretrained run for cell-type annotation.",
            config=Lazy("cytoray.tasks.annotation.config", "FinetuneConfig"),
            run=Lazy("cytoray.tasks.annotation.learning", "run_finetuning"),
        ),
        evaluation=TaskStage(
            "evaluate",
            "Score a model on held-out cells beside simple baselines, with plots.",
            config=Lazy("cytoray.tasks.annotation.config", "EvaluateConfig"),
            run=Lazy("cytoray.tasks.annotation.evaluation", "run_evaluation"),
        ),
        assessment=TaskAssessment(
            "Assess cell-type annotation: tuned logistic regression, and a blend of methods that contains it.",
            config=Lazy("cytoray.tasks.annotation.assess_config", "AssessAnnotationConfig"),
            run=Lazy("cytoray.tasks.annotation.assessment", "run_assessment"),
        ),
        endpoint=Lazy("cytoray.tasks.annotation.answers", "ENDPOINT"),
        offline=TaskOffline("annotate", "Annotate the cells of files offline, as the service does."),
    ),
    "regression": TaskSpec(
        "regression",
        learning=TaskStage(
            "finetune-regression",
            "Fine-tune a model to predict a number of each cell.",
            config=Lazy("cytoray.tasks.regression.config", "FinetuneRegressionConfig"),
            run=Lazy("cytoray.tasks.regression.learning", "run_finetuning"),
        ),
    ),
    "integration": TaskSpec(
        "integration",
        learning=TaskStage(
            "finetune-integration",
            "Fine-tune a model for batch integration by scGPT's recipe.",
            config=Lazy("cytoray.tasks.integration.config", "FinetuneIntegrationConfig"),
            run=Lazy("cytoray.tasks.integration.learning", "run_finetuning"),
        ),
        assessment=TaskAssessment(
            "Assess batch integration: tuned Harmony, and the best of several methods, chosen without cell types.",
            config=Lazy("cytoray.tasks.integration.assess_config", "AssessIntegrationConfig"),
            run=Lazy("cytoray.tasks.integration.assessment", "run_assessment"),
        ),
        endpoint=Lazy("cytoray.tasks.integration.answers", "ENDPOINT"),
        attachment=TaskAttachment(
            "integration",
            "Folder or s3:// prefix of an integration, as `cytoray integrate --model-out` writes it.",
            collect=Lazy("cytoray.tasks.integration.attached", "collect_integration"),
        ),
    ),
    "mapping": TaskSpec(
        "mapping",
        assessment=TaskAssessment(
            "Assess reference mapping: labels of a query by a reference, beside tuned logistic regression.",
            config=Lazy("cytoray.tasks.mapping.assess_config", "AssessMappingConfig"),
            run=Lazy("cytoray.tasks.mapping.assessment", "run_assessment"),
        ),
        endpoint=Lazy("cytoray.tasks.mapping.answers", "ENDPOINT"),
        offline=TaskOffline("map", "Map the cells of files by the reference that a model carries."),
        attachment=TaskAttachment(
            "reference",
            "Folder or s3:// prefix of a reference, as `cytoray reference build` writes it.",
            collect=Lazy("cytoray.tasks.mapping.attached", "collect_reference"),
        ),
    ),
    "genes": TaskSpec("genes", endpoint=Lazy("cytoray.tasks.genes.answers", "ENDPOINT")),
    "networks": TaskSpec(
        "networks",
        assessment=TaskAssessment(
            "Assess gene networks: depth-corrected correlation, and evidence of several kinds that contains it.",
            config=Lazy("cytoray.tasks.networks.assess_config", "AssessNetworksConfig"),
            run=Lazy("cytoray.tasks.networks.assessment", "run_assessment"),
        ),
        endpoint=Lazy("cytoray.tasks.networks.answers", "ENDPOINT"),
        attachment=TaskAttachment(
            "networks",
            "Folder or s3:// prefix of a gene network, as `cytoray networks infer` writes it.",
            collect=Lazy("cytoray.tasks.networks.attached", "collect_networks"),
        ),
    ),
    "multiomic": TaskSpec(
        "multiomic",
        learning=TaskStage(
            "finetune-multiomic",
            "Fine-tune a model on genes together with proteins or peaks.",
            config=Lazy("cytoray.tasks.multiomic.config", "FinetuneMultiomicConfig"),
            run=Lazy("cytoray.tasks.multiomic.learning", "run_finetuning"),
        ),
        assessment=TaskAssessment(
            "Assess the prediction of proteins from RNA: the best simple method, and a blend that contains it.",
            config=Lazy("cytoray.tasks.multiomic.assess_config", "AssessMultiomicConfig"),
            run=Lazy("cytoray.tasks.multiomic.assessment", "run_assessment"),
        ),
        endpoint=Lazy("cytoray.tasks.multiomic.answers", "ENDPOINT"),
        offline=TaskOffline(
            "predict-proteins", "Predict proteins of the cells of files, if a model carries a protein model."
        ),
        attachment=TaskAttachment(
            "proteins",
            "Folder or s3:// prefix of a protein model, as `cytoray proteins fit` writes it.",
            collect=Lazy("cytoray.tasks.multiomic.attached", "collect_proteins"),
        ),
    ),
    "perturbation": TaskSpec(
        "perturbation",
        learning=TaskStage(
            "finetune-perturbation",
            "Fine-tune a model to predict perturbed cells from control cells.",
            config=Lazy("cytoray.tasks.perturbation.config", "FinetunePerturbationConfig"),
            run=Lazy("cytoray.tasks.perturbation.learning", "run_finetuning"),
        ),
        assessment=TaskAssessment(
            "Assess the prediction of perturbations: the mean of the known ones, and an operator that contains it.",
            config=Lazy("cytoray.tasks.perturbation.assess_config", "AssessPerturbationConfig"),
            run=Lazy("cytoray.tasks.perturbation.assessment", "run_assessment"),
        ),
        endpoint=Lazy("cytoray.tasks.perturbation.answers", "ENDPOINT"),
        attachment=TaskAttachment(
            "perturbations",
            "Folder or s3:// prefix of a perturbation model, as `cytoray perturbations fit` writes it.",
            collect=Lazy("cytoray.tasks.perturbation.attached", "collect_perturbations"),
        ),
    ),
}


def task_stages() -> dict[str, TaskStage]:
    """Return the stages of all tasks by ``kind``, in the order of the table."""
    return {stage.kind: stage for task in TASKS.values() for stage in task.stages}


def learning_stages() -> dict[str, TaskStage]:
    """Return the stages that train, by ``kind``."""
    return {task.learning.kind: task.learning for task in TASKS.values() if task.learning is not None}


def task_assessments() -> dict[str, TaskAssessment]:
    """Return the assessments of all tasks by the name of the task."""
    return {name: task.assessment for name, task in TASKS.items() if task.assessment is not None}


def task_offline() -> dict[str, TaskSpec]:
    """Return the tasks whose endpoints answer the cells of files, by the ``kind`` of that."""
    return {task.offline.kind: task for task in TASKS.values() if task.offline is not None}


def task_attachments() -> dict[str, TaskAttachment]:
    """Return what a bundle can carry for the tasks, by the name of the attachment."""
    return {task.attachment.name: task.attachment for task in TASKS.values() if task.attachment is not None}


def task_endpoints() -> dict[str, Endpoint[Any, Any]]:
    """Return the endpoints of all tasks by name, in the order of the table."""
    loaded = [task.endpoint.load() for task in TASKS.values() if task.endpoint is not None]
    return {endpoint.name: endpoint for endpoint in loaded}


def find_endpoint(name: str) -> Endpoint[Any, Any]:
    """Return the endpoint called ``name``; RequestError that lists them if it is unknown."""
    endpoints = task_endpoints()
    if name not in endpoints:
        raise RequestError(f"Unknown endpoint {name!r}.", remedy=f"Known are {', '.join(endpoints)}.", code="not_found")
    return endpoints[name]
