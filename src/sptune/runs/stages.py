"""The stages that runs are made of: linear probe or zero-shot, search, final training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from peft import PeftModel, get_peft_model
from torch import nn
from transformers import TrainerCallback, set_seed

from sptune import whole_files
from sptune.config import SPTConfig
from sptune.modeling.final_network import discretize
from sptune.modeling.loading import HEADS
from sptune.modeling.model import SPTModel
from sptune.runs import output_folder as outputs
from sptune.runs.evaluation import quiet_stdout
from sptune.runs.job import SPLITS, Job
from sptune.runs.stage_trainers import (
    activation_cache,
    evaluate_splits,
    final_arguments,
    last_checkpoint,
    make_trainer,
    run_callbacks,
    training_arguments,
)
from sptune.search import SearchResult, search_prompt_layers
from sptune.search.searchers import SEARCHERS
from sptune.training.linear_probe import LinearProbe, probe_scores
from sptune.training.trainer import SPTTrainer


def zero_shot(
    job: Job, splits: Sequence[str] = SPLITS[1:], callbacks: Sequence[TrainerCallback] = ()
) -> dict[str, Any]:
    """The metrics of the language model without any training.

    Args:
        job: a task of a language model.
        splits: what it is evaluated on.
        callbacks: besides the one that counts steps.
    """
    job.plan.monitor.stage("Evaluating the language model without any training (zero-shot), for comparison")
    trainer = make_trainer(
        job, job.backbone, training_arguments(job, "baseline", 1, baseline=True), callbacks=callbacks
    )
    return {"kind": "zero-shot", "parameters": 0, **evaluate_splits(job, trainer, job.encoded, splits)}


def linear_probe(
    job: Job, splits: Sequence[str] = SPLITS[1:], callbacks: Sequence[TrainerCallback] = ()
) -> dict[str, Any]:
    """The head on the frozen backbone, trained as prompts are; the backbone is given back as it was.

    Args:
        job: a classifier task.
        splits: what it is evaluated on.
        callbacks: besides the one that counts steps.

    Returns:
        `kind`, `parameters`, metrics by split, and `pooling_seconds`: what the one pass of the training texts through
        the backbone took, where one is enough.
    """
    plan = job.plan
    heads = [name for name in HEADS if isinstance(getattr(job.backbone, name, None), nn.Module)]
    alone = LinearProbe(job.backbone, [*heads, *(name for name in job.absent if name not in heads)])
    arguments = training_arguments(
        job, "baseline", plan.max_steps, learning_rate=plan.options.head_learning_rate, baseline=True
    )
    encoded, collator, pooling_seconds = job.encoded, plan.encoder.collator, 0.0
    if alone.pools_once:
        plan.monitor.stage("Running the backbone once over all texts, for the linear probe")
        pool = partial(alone.pool, collator=collator, batch_size=arguments.per_device_eval_batch_size,
                       device=arguments.device)  # fmt: skip
        started = time.monotonic()
        pooled = {"train": pool(encoded["train"])}
        pooling_seconds = time.monotonic() - started
        encoded = pooled | {name: pool(split) for name, split in encoded.items() if name != "train"}
    plan.monitor.stage("Training a linear probe, for comparison", plan.max_steps)
    set_seed(plan.options.seed)
    callbacks = [*callbacks, *plan.tracker.stage("linear_probe")]
    trainer = make_trainer(
        job, alone, arguments, encoded, None if alone.pools_once else collator, probe_scores, callbacks
    )
    with quiet_stdout():
        trainer.train()
    results = evaluate_splits(job, trainer, encoded, splits)
    parameters = sum(parameter.numel() for parameter in alone.parameters())
    alone.restore()
    return {"kind": "linear probe", "parameters": parameters, "pooling_seconds": round(pooling_seconds, 2), **results}


def search_layers(job: Job) -> tuple[SearchResult, PeftModel | None]:
    """The search's result; and the supernet, unless the result is of a run that was interrupted later."""
    plan = job.plan
    path = plan.folder / outputs.SEARCH_FILE
    if plan.options.resume and path.exists():
        result = SearchResult.load(path)
        plan.tracker.log_search(result, replay=True)
        return result, None
    with plan.clock.stage("search"):
        set_seed(plan.options.seed)
        network = get_peft_model(job.backbone, _spt_config(job, "search"))
        how = plan.options.search
        spare = len(cast(SPTModel, network.base_model).generator_layers) - (how.num_prompt_layers or 1)
        searches = SEARCHERS[how.searcher].trains(len(job.encoded["train"]), spare)
        title = "Searching for the prompt layers" if searches else "Taking prompt layers without a search"
        # Searchers that leave no network to read train many, and how many steps these take in all they say themselves.
        plan.monitor.stage(title, plan.search_steps if searches and how.criterion else None)
        tracking = plan.tracker.stage("search") if how.criterion else []
        with quiet_stdout():
            result = search_prompt_layers(
                network,
                job.encoded["train"],
                training_arguments(
                    job, "search", plan.search_steps, evaluate=False, log_losses=bool(plan.options.report_to)
                ),
                how,
                class_scores=plan.encoder.class_scores,
                problem_type=plan.evaluation.trainer_options().get("problem_type"),
                class_loss=plan.evaluation.trainer_options().get("class_loss"),
                data_collator=plan.encoder.collator,
                callbacks=[*run_callbacks(plan), *tracking],
                head_learning_rate=plan.options.head_learning_rate,
                activation_cache=activation_cache(job),
                resume_from_checkpoint=last_checkpoint(plan, "search"),
                tell=plan.monitor.note,
            )
    plan.tracker.log_search(result, replay=not tracking)
    if job.is_main:
        plan.check_folder()
        for name in outputs.SEARCH_PICTURES if result.history else ():
            with whole_files.written_whole(plan.folder / name) as partial:
                result.plot(partial)
        result.save(path)  # last: with this file, the search is finished
    return result, network


def final_network(job: Job, result: SearchResult | None, network: PeftModel | None) -> PeftModel:
    """The final network, with fresh weights: prompts at the layers that were found or given.

    Args:
        job: with a backbone that carries the supernet, or nothing.
        result: of the search; None if the options name the layers.
        network: the supernet, if it is still there.
    """
    set_seed(job.plan.options.seed)
    layers: Any = job.plan.options.prompts.prompt_layers if result is None else result.prompt_layers
    if network is None:
        return get_peft_model(job.backbone, _spt_config(job, layers))
    return discretize(network, layers)


def train_network(job: Job, network: nn.Module, title: str, callbacks: Sequence[TrainerCallback] = ()) -> SPTTrainer:
    """Train what is trainable in a network on all the training data; it ends with its best weights.

    Args:
        job: what the network was made of.
        network: the backbone with whatever is trained.
        title: names the stage.
        callbacks: besides the one that counts steps.

    Returns:
        The trainer, for evaluation.
    """
    plan = job.plan
    with plan.clock.stage("train"):
        callbacks = [*callbacks, *plan.tracker.stage("train")]
        trainer = make_trainer(job, network, final_arguments(job), callbacks=callbacks)
        if isinstance(getattr(network, "base_model", None), SPTModel):
            plan.monitor.note(str(trainer.plan_activation_cache()))
        plan.monitor.stage(title, plan.max_steps)
        with quiet_stdout():
            trainer.train(resume_from_checkpoint=last_checkpoint(plan, "train"))
    if has_stopped_early(trainer):
        plan.monitor.note(
            f"Training ended after step {trainer.state.global_step} of {plan.max_steps}: {plan.options.early_stopping} "
            "evaluations brought no improvement on validation data."
        )
    return trainer


def has_stopped_early(trainer: SPTTrainer) -> bool:
    """Whether a training has ended before its last step."""
    return trainer.state.global_step < trainer.state.max_steps


def _spt_config(job: Job, prompt_layers: str | list[int]) -> SPTConfig:
    prompts = job.plan.options.prompts
    return SPTConfig.from_prompts(
        prompts,
        prompt_layers=prompt_layers,
        candidate_layers=prompts.candidate_layers if prompt_layers == "search" else None,
        task_type=job.peft_task_type,
        modules_to_save=job.untrained_modules or None,
    )
