"""Pushing the adapter of a run to the model hub, through huggingface_hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from sptune.errors import InputError, SptuneError
from sptune.runs.model_card import CARD_FILE, card_on_hub
from sptune.runs.options.run_options import RunOptions
from sptune.runs.output_folder import ADAPTER_FOLDER


def check_hub(options: RunOptions) -> None:
    """Refuse to push where that cannot work; asks no server.

    Raises:
        InputError: the id is malformed, there is no token, or the hub is turned off.
    """
    repo_id = options.push_to_hub
    if repo_id is None:
        if options.hub_private:
            raise InputError("hub_private has no effect without push_to_hub; name a repository, or leave it out.")
        return
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"push_to_hub={repo_id!r} is not an id of a repository: {error}") from None
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"push_to_hub={repo_id!r} needs the hub, and HF_HUB_OFFLINE turns it off; unset it.")
    if get_token() is None:
        raise InputError(
            f"push_to_hub={repo_id!r} needs a token of the hub that may write; log in with 'hf auth login', or set "
            "HF_TOKEN."
        )


def create_repository(repo_id: str, private: bool) -> str:
    """Make the repository, unless it is there; returns its id with its owner.

    Raises:
        InputError: the hub cannot be reached, or refuses.
    """
    hub = HfApi()
    try:
        # For a repository that is there, `create_repo` does not ask who may write to it.
        user = hub.whoami()
        owners = [user["name"], *(one["name"] for one in user.get("orgs", ()))]
        owner, sign, _ = repo_id.partition("/")
        if sign and owner not in owners:
            raise InputError(f"the token is of {owners[0]}, who cannot write to repositories of {owner}")
        return hub.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
    except Exception as error:  # of huggingface_hub, or of the HTTP library that its version uses
        raise InputError(
            f"push_to_hub={repo_id!r}: the repository cannot be made on {constants.ENDPOINT} ({_first_line(error)}); "
            "check the id, the token's permission to write, and the network."
        ) from None


def push_adapter(folder: Path, repo_id: str, private: bool, again: str) -> str:
    """Push the adapter of a finished run in one commit; returns its address.

    Args:
        folder: the output folder of the run.
        repo_id: the repository.
        private: as in `create_repository`.
        again: the command that pushes it again.

    Raises:
        SptuneError: the upload failed; the run stays as it is.
    """
    adapter = folder / ADAPTER_FOLDER
    try:
        repo_id = create_repository(repo_id, private)
        files = {file.name: file for file in sorted(adapter.iterdir()) if file.is_file()}
        card = card_on_hub(files[CARD_FILE].read_text(encoding="utf-8"), repo_id).encode()
        contents: dict[str, Path | bytes] = {**files, CARD_FILE: card}
        operations = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in contents.items()
        ]
        HfApi().create_commit(repo_id, operations, commit_message="Adapter of sptune")
    except Exception as error:  # whatever happens here, the run is finished
        raise SptuneError(
            f"The run in {folder} is finished and complete, but its adapter could not be pushed to {repo_id} "
            f"({_first_line(error)}). Push it again with: {again}"
        ) from None
    return f"{constants.ENDPOINT}/{repo_id}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
