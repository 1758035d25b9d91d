"""Puts an exported backbone on the Hub, in one commit: safetensors, JSON, YAML, Markdown and PNG, nothing else."""

from __future__ import annotations

import logging
import shlex
from contextlib import suppress
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, RepoUrl
from transformers.trainer_utils import HubStrategy

from hf_essl.config import SSLTrainingArguments
from hf_essl.config.redact import check_public, public_recipe
from hf_essl.hub.card import CARD, card_on_hub
from hf_essl.hub.hub_errors import HubError, HubUnreachable, plain_errors
from hf_essl.run_folder import CONFIG, RECIPE, WEIGHTS, last_complete_checkpoint

logger = logging.getLogger(__name__)

SSL_STATE = "ssl"
"""The folder of a repository that holds the whole SSL state, heads, teacher and queue, beside the backbone."""

Files = dict[str, Path | bytes]
"""What a commit holds, by path in the repository."""


def push_backbone(
    source: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    full_state: bool = False,
) -> str:
    """Pushes the backbone of a finished run; repeated after it was cut off, it goes on and ends whole.

    The token is that of HF_TOKEN or of `hf auth login`. The repository and the branch are made where they are missing.

    Args:
        source: the folder of a run, or of an exported backbone.
        repo_id: user/name; a bare name is one of your own.
        private: for a repository that is made; by default as the account has it.
        revision: a branch; by default main.
        full_state: push the last complete checkpoint's weights as well, under `ssl/`: heads, teacher and queue.

    Returns:
        The URL of the repository.

    Raises:
        ValueError: where there is no exported backbone, or no checkpoint for full_state, and for a text that names
            folders of this machine.
        HubError: where the Hub does not take it; a `HubUnreachable` where trying again later may help.
    """
    folder = find_export(source)
    files = backbone_files(folder)
    if full_state:
        files |= ssl_files(_last_checkpoint(folder.parent))
    check_public(files, folder.parent)
    try:
        return commit(files, repo_id, private, revision, commit_message or "Push a backbone of hf_essl")
    except HubError as error:
        command = ["hf-essl", "push", str(source), "--repo_id", repo_id]
        command += ["--revision", revision] if revision else []
        command += [flag for flag, is_set in (("--private", private), ("--full_state", full_state)) if is_set]
        again = shlex.join(command)
        raise type(error)(f"{error}; the backbone is safe in {folder}, and `{again}` pushes it then") from error


def push_finished_run(args: SSLTrainingArguments) -> str | None:
    """Pushes what a finished run has written, as its arguments say.

    Returns:
        The URL; or None, with a warning that says how to push it by hand: the run is finished and saved.
    """
    try:
        return push_backbone(
            args.folder,
            repository_name(args),
            private=args.hub_private_repo,
            revision=args.hub_revision,
            commit_message="End of training",
            full_state=args.hub_strategy == HubStrategy.CHECKPOINT,
        )
    except (ValueError, OSError) as error:
        logger.warning("the run is finished and saved, but not pushed: %s", error)
        return None


def check_access(args: SSLTrainingArguments) -> None:
    """Raises HubError for what would stop every push of a run; not where the Hub alone is in trouble."""
    if args.push_to_hub and args.process_index == 0:
        with suppress(HubUnreachable):
            open_repository(repository_name(args), args.hub_private_repo, args.hub_revision)


def open_repository(repo_id: str, private: bool | None = None, revision: str | None = None) -> RepoUrl:
    """Makes the repository and the branch where they are missing, and makes sure that the token may write there.

    Raises HubError.
    """
    api = _api()
    with plain_errors(repo_id):
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.auth_check(url.repo_id, write=True)  # a token that may only read finds a repository that is there
        if private and not api.model_info(url.repo_id).private:
            raise HubError(
                f"{url.repo_id} is there already and public; make it private in its settings, or take another repo_id"
            )
        if revision is not None and revision != "main" and not revision.startswith("refs/"):
            api.create_branch(url.repo_id, branch=revision, exist_ok=True)
    return url


def commit(files: Files, repo_id: str, private: bool | None, revision: str | None, message: str) -> str:
    """Uploads the files in one commit, those that the Hub has already left out; the card's code loads them from there.

    Returns the URL. Raises HubError.
    """
    url = open_repository(repo_id, private, revision)
    card = files.get(CARD)
    if isinstance(card, Path):
        files = files | {CARD: card_on_hub(card.parent, url.repo_id)}
    with plain_errors(url.repo_id):
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        _api().create_commit(url.repo_id, operations, commit_message=message, revision=revision)
    return str(url) if revision is None else f"{url}/tree/{revision}"


def backbone_files(folder: Path) -> Files:
    """What of an exported folder goes into the root of the repository."""
    names = [CONFIG, WEIGHTS, CARD]
    pictures = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    return {name: folder / name for name in [*names, *pictures] if (folder / name).is_file()}


def ssl_files(checkpoint: Path) -> Files:
    """The SSL state of a checkpoint and the recipe of its run, for the repository; no optimizer, no pickle."""
    files: Files = {f"{SSL_STATE}/{WEIGHTS}": checkpoint / WEIGHTS}
    recipe = checkpoint.parent / RECIPE
    return files | ({f"{SSL_STATE}/{RECIPE}": public_recipe(recipe)} if recipe.is_file() else {})


def find_export(source: str | Path) -> Path:
    """The exported folder of a run, or the folder itself. Raises ValueError where there is none."""
    folder = Path(source).expanduser()
    for place in (folder / "backbone", folder):
        if (place / CONFIG).is_file() and (place / WEIGHTS).is_file():
            return place
    raise ValueError(
        f"{folder} holds no exported backbone; give the folder of a finished run or its backbone/ (a run that was "
        f"interrupted has none until it is resumed to its end)"
    )


def repository_name(args: SSLTrainingArguments) -> str:
    """`hub_model_id`, or else the name of the output folder, as transformers has it."""
    return args.hub_model_id or args.folder.absolute().name


def _last_checkpoint(run: Path) -> Path:
    try:
        return Path(last_complete_checkpoint(run))
    except ValueError as error:
        raise ValueError(f"full_state is set, but {run} holds no complete checkpoint; drop full_state") from error


def _api() -> HfApi:
    """A client that takes the token of HF_TOKEN or of the login, and raises LocalTokenNotFoundError without one."""
    return HfApi(token=True, library_name="hf_essl")
