"""`AdapterPool`: one frozen backbone and many adapters, which may change while it answers."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel

from sptune.errors import InputError, UnknownAdapterError
from sptune.modeling.loading import is_causal, load_backbone, load_config, load_tokenizer
from sptune.runs.adapter_folder import AdapterFolder, check_same_backbone, named_folders, read_all
from sptune.runs.class_evaluation import prediction_rows
from sptune.runs.class_scores import LoadedAdapter, batch_scores, class_scores, tokenize
from sptune.runs.progress import Monitor, processes
from sptune.tasks import Example, TaskEncoder, check_request

Text = str | Mapping[str, str]
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
        self._causal, self.tokenizer = is_causal(load_config(source)), load_tokenizer(source)
        # Threads take turns: a forward keeps the device busy by itself, and no adapter may change within one.
        self._turn = threading.RLock()
        self._keys = (f"adapter{number}" for number in itertools.count())
        self._adapters: dict[str, LoadedAdapter] = {}
        first = self._prepare(self._first)
        backbone, _ = load_backbone(self._first.backbone, self.tokenizer)
        self.model = PeftModel.from_pretrained(backbone, str(self._first.path), adapter_name=first.key).eval()
        self.model.to(processes().device)
        self._adapters[first_name] = first
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

    def predict(self, requests: Sequence[tuple[str, Text]]) -> list[Row]:
        """Predict the class of texts, each with an adapter of its own.

        Args:
            requests: pairs of an adapter's name and a text. A task with several text columns takes a mapping from
                columns to texts. Texts that are too long are cut.

        Returns:
            For each request a row as `sptune predict` writes it: the text by column, "prediction" and "scores".

        Raises:
            InputError: an adapter is not loaded, or a text is missing or empty.
        """
        with self._turn:
            examples = [
                (name, check_request(text, self[name].task.text_fields, f"request {number}"))
                for number, (name, text) in enumerate(requests)
            ]
            return self.predict_examples(examples)

    def predict_examples(self, examples: Sequence[tuple[str, Example]], monitor: Monitor | None = None) -> list[Row]:
        """As `predict`, of examples whose texts are in the order of the task's columns."""
        with self._turn:
            tasks = [self[name].task for name, _ in examples]
            scores = self.class_scores(examples, monitor)
        rows = zip(tasks, examples, scores, strict=True)
        return [next(prediction_rows(task, [example], own[None])) for task, (_, example), own in rows]

    def class_scores(self, examples: Sequence[tuple[str, Example]], monitor: Monitor | None = None) -> list[np.ndarray]:
        """The scores (classes,) of each example; see `sptune.runs.class_scores`."""
        with self._turn:
            return class_scores(self.model, [(self[name], one) for name, one in examples], monitor or Monitor())

    # -- the model ---------------------------------------------------------------------------------------------------

    def _prepare(self, folder: AdapterFolder) -> LoadedAdapter:
        """An adapter under a new key, whose weights are not loaded yet."""
        encoder = TaskEncoder(folder.class_task, self.tokenizer, max_length=folder.max_length, causal=self._causal)
        return LoadedAdapter(folder, next(self._keys), encoder)

    def _load(self, folder: AdapterFolder) -> LoadedAdapter:
        """Load the weights of an adapter, and try it.

        Raises:
            InputError: the weights do not fit; the model is as before.
        """
        check_same_backbone(self._first, folder)
        adapter = self._prepare(folder)
        try:
            # So loaded, weights take as much memory as in the file, whatever size the configuration names.
            found = self.model.load_adapter(
                str(folder.path), adapter.key, torch_device=str(self.model.device), low_cpu_mem_usage=True
            )
            if found.missing_keys or found.unexpected_keys:
                raise ValueError(f"missing: {found.missing_keys}, not expected: {found.unexpected_keys}")
            self._try(adapter)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            if adapter.key in self.model.peft_config:
                self.model.delete_adapter(adapter.key)
            raise InputError(
                f"{folder.path}: its weights do not fit its configuration, its task or the backbone ({error}); save "
                "the adapter again with the versions that trained it."
            ) from error
        return adapter

    def _try(self, adapter: LoadedAdapter) -> None:
        """Refuse an adapter that cannot score a text: a head of other classes, or weights that are not finite."""
        (features,), _ = tokenize(adapter.encoder, [dict.fromkeys(adapter.task.text_fields, "a")])
        (scores,) = batch_scores(self.model, [(adapter, features)])
        if not np.isfinite(scores).all():
            raise ValueError("its scores are not finite numbers")

    def _unload_unused(self) -> None:
        """Delete the weights that no adapter uses any more.

        PEFT takes no adapter into a model that has none, so the last one's weights stay until there is another.
        """
        used = {adapter.key for adapter in self._adapters.values()}
        for key in set(self.model.peft_config) - used if used else ():
            self.model.delete_adapter(key)
