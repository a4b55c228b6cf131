"""`AdapterPool`: one frozen backbone and many adapters, which may change while it answers."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sptune.errors import InputError, UnknownAdapterError
from sptune.modeling.loading import is_causal, load_backbone, load_config, load_tokenizer
from sptune.runs.progress import Monitor
from sptune.runs.task_kinds import build_encoder
from sptune.saved_adapters.adapter_folder import AdapterFolder, check_same_backbone, named_folders, read_all
from sptune.saved_adapters.adapter_loading import load_with_backbone, loading
from sptune.saved_adapters.class_scores import batch_scores, class_rows, class_scores, tokenize
from sptune.saved_adapters.generated_rows import generated_rows
from sptune.saved_adapters.loaded_adapter import LoadedAdapter
from sptune.tasks import Example, Text, check_request

Row = dict[str, Any]


class AdapterPool:
    """One frozen backbone and many adapters, each with its own task.

    Threads may share a pool. A call sees the adapters as they are when it begins: one that another thread adds,
    replaces or removes meanwhile changes the next call.

    Args:
        adapters: adapter folders that runs wrote, all on the same backbone: a mapping from names to folders, or what
            else `named_folders` takes.

    Attributes:
        tokenizer: of the backbone.
        model: the backbone with all adapters.

    Raises:
        InputError: an adapter is broken or was trained on another backbone, or the backbone cannot be loaded.
    """

    def __init__(self, adapters: str | Path | Sequence[str | Path] | Mapping[str, str | Path]) -> None:
        (first_name, self._first), *others = read_all(named_folders(adapters)).items()
        source = self._first.backbone.source
        self._config, self.tokenizer = load_config(source), load_tokenizer(source)
        # Threads take turns: a forward keeps the device busy by itself, and no adapter may change within one.
        self._turn = threading.RLock()
        self._keys = (f"adapter{number}" for number in itertools.count())
        self._adapters: dict[str, LoadedAdapter] = {}
        self._adapters[first_name] = self._load_first()
        for name, folder in others:
            self._adapters[name] = self._load(folder)

    # -- adapters ----------------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> dict[str, LoadedAdapter]:
        """The adapters by name."""
        return dict(self._adapters)

    def __getitem__(self, name: str) -> LoadedAdapter:
        adapter = self._adapters.get(name)
        if adapter is None:
            raise UnknownAdapterError(name, self._adapters)
        return adapter

    def put(self, name: str, folder: str | Path) -> None:
        """Load an adapter, in place of the one of this name if there is one.

        Raises:
            InputError: the folder holds no adapter for this backbone; nothing has changed.
        """
        with self._turn:
            self._adapters[name] = self._load(AdapterFolder.read(folder))
            self._unload_unused()

    def remove(self, name: str) -> None:
        """Remove an adapter.

        Raises:
            UnknownAdapterError: there is none of this name.
        """
        with self._turn:
            self[name]
            del self._adapters[name]
            self._unload_unused()

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """A context manager: the adapters stay as they are until the block ends; calls of other threads wait."""
        with self._turn:
            yield

    # -- answers -----------------------------------------------------------------------------------------------------

    def predict(self, requests: Sequence[tuple[str, Text]], *, max_new_tokens: int | None = None) -> list[Row]:
        """Predict classes, labels or numbers for texts, or write what follows prompts, each with an adapter of its own.

        Args:
            requests: pairs of an adapter's name and a text or prompt. A task with several text columns takes a mapping
                from columns to texts, one of conversations a list of messages. Texts to classify that are too long are
                cut; prompts are not.
            max_new_tokens: the maximum length of a text that is written; None for that of each adapter's training.

        Returns:
            For each request a row as `sptune predict` writes it: the text by column, "prediction" and, unless that is a
            number, "scores"; or "prompt" and "generated".

        Raises:
            InputError: an adapter is not loaded, a text is missing or empty, or a prompt leaves no room for an answer.
        """
        with self._turn:
            examples = [
                (name, check_request(text, self[name].encoder.task, f"request {number}"))
                for number, (name, text) in enumerate(requests)
            ]
            return self.predict_examples(examples, [max_new_tokens] * len(examples))

    def predict_examples(
        self,
        examples: Sequence[tuple[str, Any]],
        max_new_tokens: Sequence[int | None] | None = None,
        monitor: Monitor | None = None,
    ) -> list[Row]:
        """As `predict`, of checked examples.

        Args:
            examples: pairs of an adapter's name and an example. Texts are in the order of the task's columns.
            max_new_tokens: for each example.
            monitor: receives progress events.
        """
        monitor = monitor or Monitor()
        lengths = max_new_tokens or [None] * len(examples)
        with self._turn:
            named = [(self[name], example) for name, example in examples]
            written = [index for index, (adapter, _) in enumerate(named) if adapter.writes]
            others = [index for index, (adapter, _) in enumerate(named) if not adapter.writes]
            rows = dict(zip(others, class_rows(self.model, [named[index] for index in others], monitor), strict=True))
            texts = generated_rows(
                self.model, [named[index] for index in written], [lengths[index] for index in written], monitor
            )
        rows |= zip(written, texts, strict=True)
        return [rows[index] for index in range(len(examples))]

    def class_scores(self, examples: Sequence[tuple[str, Example]], monitor: Monitor | None = None) -> list[np.ndarray]:
        """The scores (classes,) of each example; see `sptune.saved_adapters.class_scores`."""
        with self._turn:
            return class_scores(self.model, [(self[name], one) for name, one in examples], monitor or Monitor())

    # -- the model ---------------------------------------------------------------------------------------------------

    def _prepare(self, folder: AdapterFolder) -> LoadedAdapter:
        """An adapter under a new key, whose weights are not loaded yet.

        Raises:
            InputError: it does not fit the backbone's tokenizer or number of positions.
        """
        length = folder.input_length(self._config, self.tokenizer)
        encoder = build_encoder(folder.task, self.tokenizer, max_length=length, causal=is_causal(self._config))
        return LoadedAdapter(folder, next(self._keys), encoder)

    def _load_first(self) -> LoadedAdapter:
        """Load the backbone with the first adapter."""
        adapter = self._prepare(self._first)
        backbone, _ = load_backbone(self._first.backbone, self.tokenizer)
        self.model = load_with_backbone(self._first, backbone, adapter.key)
        with loading(self._first, self.model):
            self._try(adapter)
        return adapter

    def _load(self, folder: AdapterFolder) -> LoadedAdapter:
        """Load the weights of an adapter, and try it.

        Raises:
            InputError: the weights do not fit; the model is as before.
        """
        check_same_backbone(self._first, folder)
        adapter = self._prepare(folder)
        try:
            with loading(folder, self.model):
                found = self.model.load_adapter(
                    str(folder.path), adapter.key, torch_device=str(self.model.device), low_cpu_mem_usage=True
                )
                if found.missing_keys or found.unexpected_keys:
                    raise ValueError(f"missing: {found.missing_keys}, not expected: {found.unexpected_keys}")
                self._try(adapter)
        except InputError:
            if adapter.key in self.model.peft_config:
                self.model.delete_adapter(adapter.key)
            raise
        return adapter

    def _try(self, adapter: LoadedAdapter) -> None:
        """Refuse an adapter that cannot answer: a head of other classes, or weights that are not finite."""
        if adapter.writes:
            tokens = self.tokenizer("a", return_tensors="pt")["input_ids"].to(self.model.device)
            with torch.no_grad():
                scores = self.model(input_ids=tokens, adapter_names=[adapter.key]).logits.float().cpu()
        else:
            (features,), _ = tokenize(
                adapter.class_encoder, [dict.fromkeys(adapter.class_encoder.task.text_fields, "a")]
            )
            (scores,) = batch_scores(self.model, [(adapter, features)])
        if not np.isfinite(scores).all():
            raise ValueError("its scores are not finite numbers")

    def _unload_unused(self) -> None:
        """Delete the weights that no adapter uses any more.

        PEFT takes no adapter into a model that has none, so the last one's weights stay until there is another.
        """
        used = {adapter.key for adapter in self._adapters.values()}
        if not used:
            return
        self.model.set_adapter(next(iter(used)))  # PEFT warns if the active adapter is deleted
        for key in set(self.model.peft_config) - used:
            self.model.delete_adapter(key)
