"""`Replica`: one process with the backbone and all adapters, which answers batches of requests.

Ray Serve starts replicas, hands them requests and replaces those that die. A replica looks into the store before each
batch, so that all of them serve the same adapters.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import serve

from sptune.errors import InputError, TakenNameError, TooLongError
from sptune.saved_adapters.adapter_pool import AdapterPool, Row
from sptune.saved_adapters.loaded_adapter import LoadedAdapter
from sptune.serve.adapter_store import AdapterStore
from sptune.tasks import Text, check_request
from sptune.tasks.generation_encoder import GenerationEncoder
from sptune.tasks.generation_task import GenerationTask

# A batch begins when it is full, or this long after its first request.
MAX_BATCH_SIZE = 32
BATCH_WAIT_SECONDS = 0.005
# A longer text is refused before it is tokenized.
MAX_CHARACTERS = 1_000_000

Description = dict[str, Any]


@dataclass(frozen=True)
class AdapterRequest:
    """What is asked of an adapter.

    Attributes:
        adapter: its name.
        text: the text to classify, or the prompt or messages to go on from.
        write: whether it is to write.
        max_new_tokens: the maximum length of what it writes; None for that of the training.
    """

    adapter: str
    text: Text
    write: bool = False
    max_new_tokens: int | None = None


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

    async def answer(self, request: AdapterRequest) -> Row:
        """The row that `sptune predict` writes of a text.

        Raises:
            UnknownAdapterError: there is no adapter of this name.
            TooLongError: the text is longer than the adapter reads.
            InputError: the text is empty or not what the adapter reads, or it does something else.
        """
        together = self._write_together if request.write else self._classify_together
        answer = await together(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    # -- batches and adapters ----------------------------------------------------------------------------------------

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def _classify_together(self, requests: list[AdapterRequest]) -> list[Row | Exception]:
        # In a thread of its own, so that this process takes requests meanwhile.
        return await asyncio.to_thread(self.answer_batch, requests)

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def _write_together(self, requests: list[AdapterRequest]) -> list[Row | Exception]:
        return await asyncio.to_thread(self.answer_batch, requests)

    def answer_batch(self, requests: list[AdapterRequest]) -> list[Row | Exception]:
        """The answer to each request, or what is wrong with that one."""
        self._follow()
        answers: dict[int, Row | Exception] = {}
        examples: dict[int, tuple[str, Any]] = {}
        with self.pool.unchanged():
            for number, request in enumerate(requests):
                try:
                    examples[number] = (request.adapter, _checked(self.pool[request.adapter], request))
                except InputError as error:
                    answers[number] = error
            lengths = [requests[number].max_new_tokens for number in examples]
            answers |= zip(examples, self._rows(list(examples.values()), lengths), strict=True)
        return [answers[number] for number in range(len(requests))]

    def _rows(self, examples: list[tuple[str, Any]], lengths: list[int | None]) -> list[Row | Exception]:
        """The row of each example, or the error that this one causes even alone."""
        try:
            return [*self.pool.predict_examples(examples, lengths)]
        except Exception as error:  # whatever one request causes, the others of its batch get their answers
            if len(examples) == 1:
                return [error]
        return [self._rows([one], [length])[0] for one, length in zip(examples, lengths, strict=True)]

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
        copy = folder
        try:
            copy = self.store.copy(folder)
            self.pool.put(name, copy)
        except InputError as error:  # in words that clients know
            raise InputError(self._without_paths(str(error), {copy: folder})) from None
        self.store.serve(name, copy)
        return _describe(name, self.pool[name])

    def _without_paths(self, message: str, sources: Mapping[Path, Path]) -> str:
        """A message without the server's folders, which are no concern of clients.

        Args:
            message: for clients.
            sources: the folder that each copy in the store was made of.
        """
        for copy, source in sources.items():
            message = message.replace(str(copy), str(source))
        message = message.replace(str(self.store.first), "the adapters that are served")
        if self.root is not None:
            message = message.replace(f"{self.root}/", "")
        # A backbone on the server's disk is named by its last part.
        return re.sub(r"(?<=['\"])/(?:[^'\"/]+/)*([^'\"/]+)(?=['\"])", r"\1", message)


def _checked(adapter: LoadedAdapter, request: AdapterRequest) -> Any:
    """The example of a request.

    Raises:
        InputError: the text is empty, too long or not what the adapter reads, or the adapter does something else.
    """
    if adapter.writes != request.write:
        does, path = ("writes text", "generate") if adapter.writes else ("predicts classes", "classify")
        raise InputError(f"Adapter {request.adapter!r} {does}; send the request to POST /{path}.")
    encoder = adapter.text_encoder if request.write else adapter.class_encoder
    characters = len(str(request.text))
    if characters > MAX_CHARACTERS:
        raise TooLongError(characters, MAX_CHARACTERS, "characters")
    example = check_request(request.text, encoder.task, "prompt" if request.write else "text")
    if isinstance(encoder, GenerationEncoder):
        length, maximum = encoder.prompt_length(example), encoder.max_length - 1  # room for a token of the answer
    else:
        length, maximum = encoder.input_length(example.fields), encoder.max_length
    if length > maximum:
        raise TooLongError(length, maximum)
    return example


def _describe(name: str, adapter: LoadedAdapter) -> Description:
    """What clients need to know of an adapter; `version` counts the changes of all adapters together."""
    task = adapter.folder.task
    about: dict[str, Any] = {"max_length": adapter.folder.max_length}
    if isinstance(task, GenerationTask):
        about |= {"reads": "messages" if task.is_chat else "prompt", "max_new_tokens": adapter.folder.max_new_tokens}
    else:
        about["text_columns"] = list(task.text_fields)
        about |= {"labels": list(task.labels)} if task.labels else {}
    version = int(adapter.folder.path.name.rpartition("-")[2])
    return {"name": name, "version": version, "kind": task.kind, **about}
