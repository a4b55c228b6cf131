"""The trainer of a stage, its arguments and callbacks, and the metrics of its network."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sptune.runs.evaluation import Evaluation
from sptune.runs.folder_claim import CheckClaim
from sptune.runs.job import Encoded, Job
from sptune.runs.options.run_options import RunOptions
from sptune.runs.plan import Plan
from sptune.runs.processes import on_cpu
from sptune.runs.progress import StepCallback
from sptune.runs.resolution import evaluation_interval
from sptune.training.caching.cache_settings import ActivationCacheSettings
from sptune.training.checkpoints import KeepLastCheckpoint, check_checkpoint, last_whole_checkpoint
from sptune.training.data_order import grouping_by_length
from sptune.training.early_stopping import EarlyStopping
from sptune.training.trainer import SPTTrainer

WARMUP_SHARE = 0.06
CLIP_NORM = 1.0
# Points of the learning curve.
LOGGED_LOSSES = 50
# Transformers 4 leaves the mixed precision of one training in the environment, where the next one finds it. The value
# at import is the launcher's.
MIXED_PRECISION = "ACCELERATE_MIXED_PRECISION"
LAUNCHED_WITH = os.environ.get(MIXED_PRECISION, "no")


class LastEvaluation(TrainerCallback):
    """Evaluates after the last step, too, which transformers 4 does only where the interval divides the steps."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for it."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


def training_arguments(
    job: Job,
    folder: str,
    steps: int,
    *,
    learning_rate: float | None = None,
    evaluate: bool = True,
    log_losses: bool = False,
    baseline: bool = False,
) -> TrainingArguments:
    """What all stages share: AdamW, a short warm-up, linear decay, clipping, and the best checkpoint at the end.

    Args:
        job: a loaded run.
        folder: name of the folder of the stage's checkpoints.
        steps: optimization steps.
        learning_rate: that of the options if None.
        evaluate: on validation data, at intervals, which also chooses the best checkpoint.
        log_losses: for the learning curve.
        baseline: for the linear probe or zero-shot, without batches of like length and gradient checkpointing.
    """
    os.environ[MIXED_PRECISION] = LAUNCHED_WITH
    options, evaluation = job.plan.options, job.plan.evaluation
    interval = evaluation_interval(options.eval_steps if evaluate else None, steps)
    return TrainingArguments(
        output_dir=str(job.plan.checkpoints / folder),
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=max(options.batch_size, evaluation.min_batch_size),
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        learning_rate=learning_rate or options.learning_rate or 0.0,
        weight_decay=options.weight_decay,
        warmup_steps=round(WARMUP_SHARE * steps),
        lr_scheduler_type="linear",
        max_grad_norm=CLIP_NORM,
        optim="adamw_torch",
        save_strategy="steps",
        save_steps=interval,
        logging_strategy="steps" if log_losses else "no",
        logging_steps=math.ceil(steps / LOGGED_LOSSES),
        **(_evaluation_arguments(evaluation, interval) if evaluate else {}),
        **({} if baseline else _backbone_arguments(options.gradient_checkpointing)),
        **_environment_arguments(options),
    )


def final_arguments(job: Job) -> TrainingArguments:
    """The arguments of the final training."""
    return training_arguments(job, "train", job.plan.max_steps, log_losses=True)


def _evaluation_arguments(evaluation: Evaluation, interval: int) -> dict[str, Any]:
    measure = {"metric_for_best_model": evaluation.best_metric, "greater_is_better": evaluation.greater_is_better}
    return {"eval_strategy": "steps", "eval_steps": interval, "load_best_model_at_end": True, **measure}


def _backbone_arguments(gradient_checkpointing: bool) -> dict[str, Any]:
    if not gradient_checkpointing:
        return grouping_by_length()
    # The reentrant kind, which transformers 4 takes, drops the gradients of whatever lies above frozen embeddings.
    not_reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return {**grouping_by_length(), **not_reentrant}


def _environment_arguments(options: RunOptions) -> dict[str, Any]:
    """The arguments that say where and how a run computes, and that data and trackers are not the Trainer's."""
    device = {"use_cpu": on_cpu(), "dataloader_pin_memory": not on_cpu(), "bf16": options.bf16, "seed": options.seed}
    return {
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        **device,
    }


def make_trainer(
    job: Job,
    model: nn.Module,
    arguments: TrainingArguments,
    encoded: Encoded | None = None,
    collator: Any = None,
    class_scores: Callable[..., torch.Tensor] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> SPTTrainer:
    """A trainer on the job's data and scores, or on those of a linear probe."""
    how, patience = job.plan.evaluation.trainer_options(), job.plan.options.early_stopping
    stopping = [] if patience is None else [EarlyStopping(patience)]
    if encoded is None:
        encoded, collator = job.encoded, job.plan.encoder.collator
    else:
        how["class_scores"] = class_scores
    return SPTTrainer(
        model=model,
        args=arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=collator,
        head_learning_rate=job.plan.options.head_learning_rate,
        head_modules=job.head_modules,
        activation_cache=activation_cache(job),
        callbacks=[LastEvaluation(), *run_callbacks(job.plan), *stopping, *callbacks],
        **how,
    )


def run_callbacks(plan: Plan) -> list[TrainerCallback]:
    """What every training of a run tells its plan."""
    checks = [] if plan.claim is None else [CheckClaim(plan.claim)]
    return [StepCallback(plan.monitor), *checks, KeepLastCheckpoint()]


def activation_cache(job: Job) -> ActivationCacheSettings | None:
    """The settings of the activation cache; None if the run has none."""
    options = job.plan.options
    if not options.activation_cache:
        return None
    return ActivationCacheSettings(options.activation_cache_memory, options.activation_cache_dtype)


def last_checkpoint(plan: Plan, name: str) -> str | None:
    """The checkpoint from which a resumed run goes on with a stage; None if it begins it.

    Args:
        plan: of the run.
        name: of the folder of the stage's checkpoints.

    Raises:
        InputError: it has no safetensors.
    """
    folder = plan.checkpoints / name
    checkpoint = last_whole_checkpoint(folder) if plan.options.resume else None
    check_checkpoint(checkpoint)
    return checkpoint


def evaluate_splits(job: Job, trainer: SPTTrainer, encoded: Encoded, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Metrics of splits, each with its number of examples."""
    return {name: job.plan.evaluation.measure(trainer, encoded[name]) for name in names}
