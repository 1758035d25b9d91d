"""Pushes an exported backbone to the Hub in one commit: only safetensors, JSON, YAML, Markdown and PNG files."""

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
from hf_essl.run_folder import CONFIG, PREPROCESSOR, RECIPE, WEIGHTS, last_complete_checkpoint

logger = logging.getLogger(__name__)

END_OF_TRAINING = "End of training"  # the commit message of a finished run
SSL_STATE = "ssl"  # folder of a repository for the weights of the whole method: backbone, heads, teacher and queue
Files = dict[str, Path | bytes]  # the files of a commit, by path in the repository


def push_backbone(
    source: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    full_state: bool = False,
) -> str:
    """Pushes the backbone of a finished run. After an interruption, call it again: it uploads what is missing.

    It uses the token of HF_TOKEN or of `hf auth login`, and creates the repository and the branch if they are missing.

    Args:
        source: the folder of a run, or of an exported backbone.
        repo_id: user/name; a name without a user belongs to the owner of the token.
        private: make a new repository private; by default the account's setting.
        revision: a branch; by default main.
        full_state: also push the weights of the last complete checkpoint with heads, teacher and queue, in `ssl/`.

    Returns the URL of the repository.

    Raises:
        ValueError: if there is no exported backbone, or no checkpoint for full_state, and for a text file that
            contains the token or names folders of this machine.
        HubError: if the Hub does not accept the push; `HubUnreachable` if a later attempt may succeed.
    """
    folder = find_export(source)
    files = backbone_files(folder)
    if full_state:
        files |= ssl_files(_last_checkpoint(folder.parent))
    check_public(files, folder.parent)
    try:
        return commit(files, repo_id, private, revision, commit_message or "Push a backbone of hf_essl")
    except HubError as error:
        words = ["hf-essl", "push", str(source), "--repo_id", repo_id]
        words += ["--revision", revision] if revision else []
        words += ["--message", commit_message] if commit_message not in (None, END_OF_TRAINING) else []
        words += [flag for flag, is_set in (("--private", private), ("--full_state", full_state)) if is_set]
        later = f"the backbone is safe in {folder}, push it later with `{shlex.join(words)}`"
        raise type(error)(f"{error}; {later}") from error


def push_finished_run(args: SSLTrainingArguments) -> str | None:
    """Pushes the files of a finished run, as its arguments say.

    Returns the URL; None with a warning if the push failed, since the run is already finished and saved.
    """
    try:
        return push_backbone(
            args.folder,
            repository_name(args),
            private=args.hub_private_repo,
            revision=args.hub_revision,
            commit_message=END_OF_TRAINING,
            full_state=args.hub_strategy == HubStrategy.CHECKPOINT,
        )
    except (ValueError, OSError) as error:
        logger.warning("the run is finished and saved, but not pushed: %s", error)
        return None


def check_access(args: SSLTrainingArguments) -> None:
    """Raises HubError if no push of a run can succeed; a Hub that is only unreachable now raises nothing."""
    if args.push_to_hub and args.process_index == 0:
        with suppress(HubUnreachable):
            open_repository(repository_name(args), args.hub_private_repo, args.hub_revision)


def open_repository(repo_id: str, private: bool | None = None, revision: str | None = None) -> RepoUrl:
    """Creates the repository and the branch if they are missing, and checks that the token may write there.

    Raises HubError if it may not, or if a repository that should be private exists and is public.
    """
    api = _api()
    with plain_errors(repo_id):
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.auth_check(url.repo_id, write=True)  # create_repo accepts a read-only token for an existing repository
        if private and not api.model_info(url.repo_id).private:
            raise HubError(
                f"{url.repo_id} already exists and is public; make it private in its settings, or choose another "
                f"repo_id"
            )
        if revision is not None and revision != "main" and not revision.startswith("refs/"):
            api.create_branch(url.repo_id, branch=revision, exist_ok=True)
    return url


def commit(files: Files, repo_id: str, private: bool | None, revision: str | None, message: str) -> str:
    """Uploads the files in one commit, except those that the Hub already has; returns the URL.

    The code of the card loads the backbone from this repository. Raises HubError.
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
    """The files of an exported folder for the root of the repository."""
    pictures = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    return {
        name: folder / name for name in (CONFIG, WEIGHTS, PREPROCESSOR, CARD, *pictures) if (folder / name).is_file()
    }


def ssl_files(checkpoint: Path) -> Files:
    """The weights of a checkpoint and the recipe of its run; without the optimizer and pickles."""
    recipe = checkpoint.parent / RECIPE
    files: Files = {f"{SSL_STATE}/{WEIGHTS}": checkpoint / WEIGHTS}
    return files | ({f"{SSL_STATE}/{RECIPE}": public_recipe(recipe)} if recipe.is_file() else {})


def find_export(source: str | Path) -> Path:
    """The exported folder of a run, or the folder itself. Raises ValueError if there is none."""
    folder = Path(source).expanduser()
    for place in (folder / "backbone", folder):
        if (place / CONFIG).is_file() and (place / WEIGHTS).is_file():
            return place
    raise ValueError(
        f"{folder} does not contain an exported backbone; pass the folder of a finished run or its backbone/ (an "
        f"interrupted run has none until it is resumed and finished)"
    )


def repository_name(args: SSLTrainingArguments) -> str:
    """`hub_model_id`, or as in transformers the name of the output folder."""
    return args.hub_model_id or args.folder.absolute().name


def _last_checkpoint(run: Path) -> Path:
    try:
        return Path(last_complete_checkpoint(run))
    except ValueError as error:
        raise ValueError(f"full_state is set, but {run} has no complete checkpoint; drop full_state") from error


def _api() -> HfApi:
    """A client with the token of HF_TOKEN or of the login; without a token it raises LocalTokenNotFoundError."""
    return HfApi(token=True, library_name="hf_essl")
