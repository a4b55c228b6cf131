"""The stages that runs are made of: load, linear probe, search, final training, evaluation."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from sptune import whole_files
from sptune.config import SPTConfig
from sptune.modeling.backbones import find_backbone
from sptune.modeling.final_network import discretize
from sptune.modeling.loading import CAUSAL_LM, CLASSIFIER, HEADS, load_backbone
from sptune.modeling.model import SPTModel
from sptune.runs import output_folder as outputs
from sptune.runs.evaluation import quiet_stdout
from sptune.runs.folder_claim import CheckClaim
from sptune.runs.plan import Plan
from sptune.runs.progress import StepCallback, on_cpu, processes
from sptune.runs.resolution import evaluation_interval
from sptune.runs.score_evaluation import by_length
from sptune.search import SearchResult, search_prompt_layers
from sptune.search.searchers import SEARCHERS
from sptune.training.caching.cache_settings import ActivationCacheSettings
from sptune.training.checkpoints import KeepLastCheckpoint, check_checkpoint, last_whole_checkpoint
from sptune.training.data_order import grouping_by_length
from sptune.training.early_stopping import EarlyStopping
from sptune.training.linear_probe import LinearProbe, probe_scores
from sptune.training.trainer import SPTTrainer

WARMUP_SHARE = 0.06
CLIP_NORM = 1.0
# Points of the learning curve.
LOGGED_LOSSES = 50
SPLITS = ("train", "validation", "test")
# Transformers 4 leaves the mixed precision of one training in the environment, where the next one finds it; what stood
# there at first is of whoever launched this process.
MIXED_PRECISION = "ACCELERATE_MIXED_PRECISION"
LAUNCHED_WITH = os.environ.get(MIXED_PRECISION, "no")

Encoded = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A plan with its frozen backbone and encoded data.

    Attributes:
        absent: modules that the checkpoint did not bring, which must be trained and saved.
        encoded: splits by name; validation and test by length, so that batches hold little padding.
        test_order: where each example of the encoded test data stands in the plan's.
    """

    plan: Plan
    backbone: PreTrainedModel
    absent: list[str]
    encoded: Encoded
    test_order: np.ndarray

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files of the run."""
        return processes().is_main_process

    @property
    def untrained_modules(self) -> list[str]:
        """Modules that must be trained besides the heads, which PEFT trains and saves on its own."""
        return [name for name in self.absent if name not in HEADS]

    @property
    def head_modules(self) -> set[str]:
        """Names of modules that every method trains besides its own parameters, where the backbone has them."""
        return {*HEADS, *(name.split(".")[-1] for name in self.absent)}

    @property
    def peft_task_type(self) -> str | None:
        """PEFT's name for the kind of head."""
        return {CLASSIFIER: "SEQ_CLS", CAUSAL_LM: "CAUSAL_LM"}.get(self.plan.spec.head)


def load(plan: Plan) -> Job:
    """Load what a plan names.

    Raises:
        InputError: an example does not fit the maximum length, or the backbone cannot be loaded or take prompts.
    """
    with plan.clock.stage("encode"):
        plan.monitor.stage("Turning text into tokens")
        encoded = {name: plan.encoder.encode(getattr(plan.splits, name)) for name in SPLITS}
        orders = {name: by_length(encoded[name]) for name in SPLITS[1:]}
        encoded |= {name: encoded[name].select(order) for name, order in orders.items()}
    with plan.clock.stage("load"):
        plan.monitor.stage(f"Loading {plan.spec.source.model}")
        set_seed(plan.options.seed)
        backbone, absent = load_backbone(plan.spec, plan.tokenizer)
        find_backbone(backbone, plan.options.prompts.layers_path, plan.options.prompts.placement)
    return Job(plan, backbone, absent, encoded, orders["test"])


# -- stages -------------------------------------------------------------------------------------------------------


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
    trainer = make_trainer(job, job.backbone, training_arguments(job, "baseline", 1), callbacks=callbacks)
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
    arguments = training_arguments(job, "baseline", plan.max_steps, learning_rate=plan.options.head_learning_rate)
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
        spare = len(cast(SPTModel, network.base_model).candidate_layers) - (how.num_prompt_layers or 1)
        searches = SEARCHERS[how.searcher].trains(len(job.encoded["train"]), spare)
        title = "Searching for the prompt layers" if searches else "Taking prompt layers without a search"
        # Searchers that leave no network to read train many, and how many steps these take in all they say themselves.
        plan.monitor.stage(title, plan.search_steps if searches and how.criterion else None)
        tracking = plan.tracker.stage("search") if how.criterion else []
        with quiet_stdout():
            result = search_prompt_layers(
                network,
                job.encoded["train"],
                training_arguments(job, "search", plan.search_steps, evaluate=False),
                how,
                class_scores=plan.encoder.class_scores,
                problem_type=plan.evaluation.trainer_options().get("problem_type"),
                class_loss=plan.evaluation.trainer_options().get("class_loss"),
                data_collator=plan.encoder.collator,
                callbacks=[*_run_callbacks(plan), *tracking],
                head_learning_rate=plan.options.head_learning_rate,
                activation_cache=_activation_cache(job),
                resume_from_checkpoint=_last_checkpoint(plan, "search"),
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
        trainer = make_trainer(job, network, training_arguments(job, "train", plan.max_steps), callbacks=callbacks)
        if isinstance(getattr(network, "base_model", None), SPTModel):
            plan.monitor.note(str(trainer.plan_activation_cache()))
        plan.monitor.stage(title, plan.max_steps)
        with quiet_stdout():
            trainer.train(resume_from_checkpoint=_last_checkpoint(plan, "train"))
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


class LastEvaluation(TrainerCallback):
    """Evaluates after the last step, too, which transformers 4 does only where the interval divides the steps."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for it."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


def training_arguments(
    job: Job, name: str, steps: int, *, learning_rate: float | None = None, evaluate: bool = True
) -> TrainingArguments:
    """What all stages share: AdamW, a short warm-up, linear decay, clipping, and the best checkpoint at the end."""
    os.environ[MIXED_PRECISION] = LAUNCHED_WITH
    options = job.plan.options
    interval = evaluation_interval(options.eval_steps if evaluate else None, steps)
    more: dict[str, Any] = {}
    if evaluate:
        more |= {"eval_strategy": "steps", "eval_steps": interval, "load_best_model_at_end": True}
        evaluation = job.plan.evaluation
        more |= {"metric_for_best_model": evaluation.best_metric, "greater_is_better": evaluation.greater_is_better}
    if name != "baseline":
        more |= grouping_by_length()
    if name != "baseline" and options.gradient_checkpointing:
        # The reentrant kind, which transformers 4 takes, drops the gradients of whatever lies above frozen embeddings.
        more |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return TrainingArguments(
        output_dir=str(job.plan.checkpoints / name),
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=max(options.batch_size, job.plan.evaluation.min_batch_size),
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        learning_rate=learning_rate or options.learning_rate or 0.0,
        weight_decay=options.weight_decay,
        warmup_steps=round(WARMUP_SHARE * steps),
        lr_scheduler_type="linear",
        max_grad_norm=CLIP_NORM,
        optim="adamw_torch",
        save_strategy="steps",
        save_steps=interval,
        logging_strategy="steps" if name == "train" or (name == "search" and options.report_to) else "no",
        logging_steps=math.ceil(steps / LOGGED_LOSSES),
        report_to="none",
        use_cpu=on_cpu(),
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=not on_cpu(),
        seed=options.seed,
        bf16=options.bf16,
        **more,
    )


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
        activation_cache=_activation_cache(job),
        callbacks=[LastEvaluation(), *_run_callbacks(job.plan), *stopping, *callbacks],
        **how,
    )


def _run_callbacks(plan: Plan) -> list[TrainerCallback]:
    """What every training of a run tells its plan."""
    checks = [] if plan.claim is None else [CheckClaim(plan.claim)]
    return [StepCallback(plan.monitor), *checks, KeepLastCheckpoint()]


def _activation_cache(job: Job) -> ActivationCacheSettings | None:
    options = job.plan.options
    if not options.activation_cache:
        return None
    return ActivationCacheSettings(options.activation_cache_memory, options.activation_cache_dtype)


def _last_checkpoint(plan: Plan, name: str) -> str | None:
    folder = plan.checkpoints / name
    checkpoint = last_whole_checkpoint(folder) if plan.options.resume else None
    check_checkpoint(checkpoint)
    return checkpoint


# -- results ------------------------------------------------------------------------------------------------------


def evaluate_splits(job: Job, trainer: SPTTrainer, encoded: Encoded, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Metrics of splits, each with its number of examples."""
    return {name: job.plan.evaluation.measure(trainer, encoded[name]) for name in names}
