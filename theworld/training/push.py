"""Checks that a run can push to the Hub, before weights are loaded rather than at the first checkpoint."""

from __future__ import annotations

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from theworld.inspection import repositories
from theworld.storage.hub import TransportError, hub_answers
from theworld.training.config import TrainingConfig

OR_NOT = "or set push_to_hub to false"


def check_hub(config: TrainingConfig) -> None:
    """Checks that the Hub is reachable and accepts the token; does nothing for a run that does not push.

    Raises:
        ValueError: if the Hub cannot be pushed to.
    """
    if not config.push_to_hub:
        return
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"push_to_hub needs the Hub, and HF_HUB_OFFLINE is set: unset it, {OR_NOT}.")
    if get_token() is None:
        raise ValueError(f"push_to_hub needs a token: set HF_TOKEN to one with write access, {OR_NOT}.")
    if not hub_answers(constants.ENDPOINT):
        raise ValueError(f"push_to_hub needs the Hub, and it does not answer: {repositories.no_network()}, {OR_NOT}.")
    problem = repositories.token_problem()
    if problem is not None:
        raise ValueError(problem)


def make_repository(config: TrainingConfig) -> None:
    """Creates the repository that a run pushes to, if it does not exist. Trainer would do so much later.

    Raises:
        ValueError: if the Hub refuses.
    """
    if not config.push_to_hub:
        return
    assert config.hub_model_id is not None  # checked by TrainingConfig
    try:
        HfApi().create_repo(config.hub_model_id, private=config.hub_private_repo, exist_ok=True)
    except HFValidationError as error:
        raise ValueError(f"hub_model_id {config.hub_model_id!r} is not a valid repository name: {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise ValueError(
            f"The Hub does not let this token write to {config.hub_model_id} ({status}): check hub_model_id and the "
            f"permissions of the token, {OR_NOT}."
        ) from error
    except (TransportError, OSError) as error:
        raise ValueError(
            f"{config.hub_model_id} could not be created: {repositories.no_network()}, {OR_NOT}."
        ) from error
