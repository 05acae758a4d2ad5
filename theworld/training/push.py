"""Checks that a run can push to the Hub, before weights are loaded rather than at the first checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from theworld.inspection import repositories
from theworld.storage.hub import TransportError, hub_answers, is_shipped, may_be_on_hub, resolve
from theworld.training.config import TrainingConfig

BASE_KEYS = {"vlm_name_or_path": "model_name", "world_name_or_path": "cosmos_model_name"}  # of a model -> of a run
OR_NOT = "or set push_to_hub to false"


def check_hub(config: TrainingConfig) -> None:
    """Checks that the Hub is reachable and accepts the token; does nothing for a run that does not push.

    Raises:
        ValueError: if the Hub cannot be pushed to.
    """
    if config.push_to_hub:
        check_repository(str(config.hub_model_id), "hub_model_id ")
        check_token("push_to_hub", OR_NOT)


def local_bases(model: Mapping[str, Any]) -> list[str]:
    """A sentence for each base model that is a folder of this machine, where nobody else can load the model.

    Args:
        model: the content of its `config.json`.
    """
    keys = BASE_KEYS if model.get("enable_world", True) else list(BASE_KEYS)[:1]
    return [
        f"{key} is {name}, a folder of this machine: elsewhere the pushed model cannot be loaded, and its config.json "
        f"shows this path. Train with the Hub id of the base ({BASE_KEYS[key]}), or write it into {key} in config.json."
        for key in keys
        if (name := model.get(key)) and not may_be_on_hub(name) and not is_shipped(resolve(name))
    ]


def check_repository(repository: str, key: str = "") -> None:
    """Raises a ValueError if this cannot be the id of a repository; `key` begins the message."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"{key}{repository!r} is not a valid repository name: {error}") from error


def check_token(what: str, otherwise: str) -> None:
    """Raises a ValueError unless the Hub answers and accepts the token; `what` needs them."""
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"{what} needs the Hub, and HF_HUB_OFFLINE is set: unset it, {otherwise}.")
    if get_token() is None:
        raise ValueError(f"{what} needs a token: set HF_TOKEN to one with write access, {otherwise}.")
    if not hub_answers(constants.ENDPOINT):
        raise ValueError(f"{what} needs the Hub, and it does not answer: {repositories.no_network()}, {otherwise}.")
    problem = repositories.token_problem()
    if problem is not None:
        raise ValueError(problem)


def make_repository(repository: str, private: bool, otherwise: str = OR_NOT) -> None:
    """Creates the repository of a model, if it does not exist.

    Args:
        repository: `owner/name`.
        private: whether it must be private.
        otherwise: what else can be done about an error.

    Raises:
        ValueError: if the Hub refuses, or if it must be private and there is a public one of this name.
    """
    api = HfApi()
    check_repository(repository)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        is_public = private and api.model_info(repository).private is False
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise ValueError(
            f"The Hub does not let this token write to {repository} ({status}): check hub_model_id and the "
            f"permissions of the token, {otherwise}."
        ) from error
    except (TransportError, OSError) as error:
        raise ValueError(f"{repository} could not be created: {repositories.no_network()}, {otherwise}.") from error
    if is_public:
        raise ValueError(
            f"{repository} exists and is public, but it was to be private: choose another name, make it private in its "
            f"settings, {otherwise}."
        )
