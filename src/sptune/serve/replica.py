"""`Replica`: one process with the backbone and all adapters, which answers batches of requests.

Ray Serve starts replicas, hands them requests and replaces those that die. A replica looks into the store before each
batch, so that all of them serve the same adapters.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ray import serve

from sptune.errors import InputError, TakenNameError, TooLongError
from sptune.runs.adapter_pool import AdapterPool, Row, Text
from sptune.runs.class_scores import LoadedAdapter
from sptune.serve.adapter_store import AdapterStore
from sptune.tasks import Example, check_request

# A batch begins when it is full, or this long after its first request.
MAX_BATCH_SIZE = 32
BATCH_WAIT_SECONDS = 0.005
# A longer text is refused before it is tokenized.
MAX_CHARACTERS = 1_000_000

Description = dict[str, Any]


class Replica:
    """A backbone with the adapters of a store.

    Args:
        store: the folder of the `AdapterStore`.
        root: the folder that adapters to add must be in; None to add none.
    """

    def __init__(self, store: str, root: str | None) -> None:
        self.store = AdapterStore(Path(store))
        self.root = None if root is None else Path(root)
        with self.store.lock:
            self.pool = AdapterPool(self.store.read() or {"first": self.store.first})
        self._follow()

    def adapters(self) -> list[Description]:
        """The adapters that are served."""
        self._follow()
        return [_describe(name, one) for name, one in sorted(self.pool.adapters.items())]

    def add(self, name: str, folder: Path) -> Description:
        """Serve one more adapter.

        Raises:
            TakenNameError: there is one of this name.
            InputError: the folder holds no adapter for this backbone.
        """
        with self.store.lock:
            self._follow()
            if name in self.pool.adapters:
                raise TakenNameError(f"There is an adapter {name!r} already; replace it, or choose another name.")
            return self._put(name, folder)

    def replace(self, name: str, folder: Path) -> Description:
        """Serve another version of an adapter.

        Raises:
            UnknownAdapterError: there is none of this name.
            InputError: the folder holds no adapter for this backbone; the present version stays.
        """
        with self.store.lock:
            self._follow()
            self.pool[name]
            return self._put(name, folder)

    def remove(self, name: str) -> None:
        """Serve an adapter no longer.

        Raises:
            UnknownAdapterError: there is none of this name.
        """
        with self.store.lock:
            self._follow()
            self.pool.remove(name)
            self.store.remove(name)

    async def classify(self, name: str, text: Text) -> Row:
        """The class of a text, as `sptune predict` writes it.

        Raises:
            UnknownAdapterError: there is no adapter of this name.
            TooLongError: the text is longer than the adapter reads.
            InputError: the text is empty or not what the adapter reads.
        """
        answer = await self._classify_together((name, text))
        if isinstance(answer, InputError):
            raise answer
        return answer

    # -- batches and adapters ----------------------------------------------------------------------------------------

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def _classify_together(self, requests: list[tuple[str, Text]]) -> list[Row | InputError]:
        # In a thread of its own, so that this process takes requests meanwhile.
        return await asyncio.to_thread(self._classify, requests)

    def _classify(self, requests: list[tuple[str, Text]]) -> list[Row | InputError]:
        """The answer to each request, or what is wrong with that one."""
        self._follow()
        answers: dict[int, Row | InputError] = {}
        examples: dict[int, tuple[str, Example]] = {}
        with self.pool.unchanged():
            for number, (name, text) in enumerate(requests):
                try:
                    examples[number] = (name, _checked(self.pool[name], text))
                except InputError as error:
                    answers[number] = error
            answers |= zip(examples, self.pool.predict_examples(list(examples.values())), strict=True)
        return [answers[number] for number in range(len(requests))]

    def _follow(self) -> None:
        """Load the adapters that the store has now, and no others."""
        if self._is_current():
            return
        with self.store.lock:
            stored = self.store.read()
            for name in self.pool.adapters.keys() - stored.keys():
                self.pool.remove(name)
            for name, folder in stored.items():
                if name not in self.pool.adapters or self.pool[name].folder.path != folder:
                    self.pool.put(name, folder)

    def _is_current(self) -> bool:
        return self.store.read() == {name: one.folder.path for name, one in self.pool.adapters.items()}

    def _put(self, name: str, folder: Path) -> Description:
        """Load an adapter here, which finds out whether it can be, and let all replicas serve it."""
        copy = self.store.copy(folder)
        try:
            self.pool.put(name, copy)
        except InputError as error:
            raise InputError(str(error).replace(str(copy), str(folder))) from None
        self.store.serve(name, copy)
        return _describe(name, self.pool[name])


def _checked(adapter: LoadedAdapter, text: Text) -> Example:
    """The example of a request.

    Raises:
        InputError: the text is empty, too long or not what the adapter reads.
    """
    example = check_request(text, adapter.task.text_fields, "text")
    characters = sum(map(len, example.fields.values()))
    if characters > MAX_CHARACTERS:
        raise TooLongError(characters, MAX_CHARACTERS, "characters")
    length = adapter.encoder.input_length(example.fields)
    if length > adapter.encoder.max_length:
        raise TooLongError(length, adapter.encoder.max_length)
    return example


def _describe(name: str, adapter: LoadedAdapter) -> Description:
    return {
        "name": name,
        "version": int(adapter.folder.path.name.rpartition("-")[2]),
        "kind": adapter.task.kind,
        "text_columns": list(adapter.task.text_fields),
        "labels": list(adapter.task.labels),
        "max_length": adapter.encoder.max_length,
    }
