"""The server's requests, answers and errors as JSON over HTTP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from starlette.exceptions import HTTPException

from sptune.errors import InputError, TakenNameError, TooLongError, UnknownAdapterError
from sptune.serve.adapter_store import MAX_NAME, NAME, folder_within
from sptune.serve.replica import AdapterRequest, Replica

WRONG_JSON, FORBIDDEN, UNKNOWN, WRONG_METHOD, TAKEN, TOO_LONG, WRONG_INPUT, FAILED = (
    400,
    403,
    404,
    405,
    409,
    413,
    422,
    500,
)

PATHS = ("/classify", "/generate", "/adapters", "/health")
MAX_NEW_TOKENS = 4096


class Body(BaseModel):
    """A JSON object with just the fields of its class."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ClassifyRequest(Body):
    """A text to classify.

    Attributes:
        adapter: the name of the adapter.
        text: the text; for an adapter that reads several columns, an object with the text of each.
    """

    adapter: str
    text: str | dict[str, str]


class GenerateRequest(Body):
    """A prompt to go on from.

    Attributes:
        adapter: the name of the adapter.
        prompt: a text; for an adapter that was trained on conversations, a list of messages with role and content.
        max_new_tokens: the maximum length of the text. Default: as in training.
    """

    adapter: str
    prompt: str | list[dict[str, str]]
    max_new_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)


class FolderRequest(Body):
    """The adapter folder that replaces an adapter.

    Attributes:
        folder: relative to the root.
    """

    folder: str


class AddRequest(FolderRequest):
    """An adapter folder and the name to serve it under."""

    name: str = Field(pattern=NAME, max_length=MAX_NAME)


def current_replica() -> Any:
    """The replica of this process."""
    return serve.get_replica_context().servable_object


ThisReplica = Annotated[Replica, Depends(current_replica)]
routes = APIRouter()


@routes.get("/health")
async def health() -> dict[str, str]:
    """A replica answers."""
    return {"status": "ok"}


@routes.get("/adapters")
def list_adapters(replica: ThisReplica) -> dict[str, Any]:
    """The adapters that are served."""
    return {"adapters": replica.adapters()}


@routes.post("/adapters", status_code=201)
def add_adapter(body: AddRequest, replica: ThisReplica) -> dict[str, Any]:
    """Serve one more adapter."""
    return replica.add(body.name, _within_root(body.folder, replica))


@routes.put("/adapters/{name}")
def replace_adapter(name: str, body: FolderRequest, replica: ThisReplica) -> dict[str, Any]:
    """Serve another version of an adapter."""
    return replica.replace(name, _within_root(body.folder, replica))


@routes.delete("/adapters/{name}")
def remove_adapter(name: str, replica: ThisReplica) -> dict[str, Any]:
    """Serve an adapter no longer."""
    replica.remove(name)
    return {"removed": name}


@routes.post("/classify")
async def classify(body: ClassifyRequest, replica: ThisReplica) -> dict[str, Any]:
    """The class, the labels or the number of a text."""
    return await replica.answer(AdapterRequest(body.adapter, body.text))


@routes.post("/generate")
async def generate(body: GenerateRequest, replica: ThisReplica) -> dict[str, Any]:
    """What follows a prompt."""
    return await replica.answer(AdapterRequest(body.adapter, body.prompt, True, body.max_new_tokens))


def _within_root(folder: str, replica: Replica) -> Path:
    """The folder that a request names, if it may be loaded."""
    if replica.root is None:
        raise HTTPException(FORBIDDEN, "This server adds no adapters; start it with --root, the folder they are in.")
    return folder_within(replica.root, folder)


def build_app() -> FastAPI:
    """The application; Ray Serve calls this in each replica."""
    app = FastAPI(title="sptune", openapi_url=None)
    app.include_router(routes)
    answer_errors_as_json(app)
    return app


def answer_errors_as_json(app: FastAPI) -> None:
    """Answer every error of a request with an object that says in "error" what is wrong."""

    @app.exception_handler(InputError)
    async def wrong_input(request: Request, error: InputError) -> Response:
        if isinstance(error, UnknownAdapterError):
            return _json(UNKNOWN, str(error), adapters=error.known)
        if isinstance(error, TooLongError):
            return _json(TOO_LONG, str(error), length=error.length, maximum=error.maximum, unit=error.unit)
        return _json(TAKEN if isinstance(error, TakenNameError) else WRONG_INPUT, str(error))

    @app.exception_handler(RequestValidationError)
    async def wrong_body(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        if found[0]["type"] == "json_invalid":
            return _json(WRONG_JSON, f"The body is not JSON: {found[0].get('ctx', {}).get('error', 'it breaks off')}.")
        return _json(WRONG_INPUT, _in_words(found))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        response = _json(error.status_code, _sentence(request, error))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _json(FAILED, f"The server failed ({type(error).__name__}); its log says why.")


def _sentence(request: Request, error: HTTPException) -> str:
    """What an error says to the client; those of the framework say no more than the name of their status."""
    if error.status_code == UNKNOWN:
        return f"There is no {request.url.path}; send requests to {', '.join(PATHS)}."
    if error.status_code == WRONG_METHOD:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"{request.url.path} does not take {request.method}; use {allowed}."
    return str(error.detail)


def _in_words(found: Sequence[dict[str, Any]]) -> str:
    """What is wrong with the fields of a body."""
    by_field: dict[str, list[str]] = {}
    for one in found:
        field = str(one["loc"][1]) if len(one["loc"]) > 1 else "the body"
        by_field.setdefault(field, []).append(_problem(one))
    if "the body" in by_field:
        return "The body is not a JSON object; send one, with the header 'Content-Type: application/json'."
    return " ".join(f"{field!r} {', or '.join(dict.fromkeys(ms))}." for field, ms in by_field.items())


def _problem(found: dict[str, Any]) -> str:
    """What is wrong with a field, as the end of a sentence about it."""
    if found["type"] == "missing":
        return "is missing: add this field to the body"
    if found["type"] == "extra_forbidden":
        return "is not a field of this request: leave it out"
    return f"is wrong: {found['msg'][0].lower()}{found['msg'][1:]}"


def _json(status: int, message: str, **about: Any) -> Response:
    content = json.dumps({"error": message, **about})
    return Response(content, status, media_type="application/json")
