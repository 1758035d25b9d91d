"""Keeps the Hub token and the paths of this machine out of everything that is published."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import get_token

TEXT = (".json", ".md", ".yaml")
PREFIXES = ("local-dir", "transformers")  # of a backbone, before a folder


EMBEDDED = re.compile(  # an absolute path inside a text; not the path of a URL
    r"(?<![\w/.~\\])(?:~?/(?:[^\s/'\",;:]+/)*|[A-Za-z]:\\(?:[^\s\\'\",;]+\\)*)(?=[^\s/\\'\",;:]*[\w])"
)


def without_paths(value: Any) -> Any:
    """The values of a recipe, with each absolute path, also inside a text, cut to its last component."""
    if isinstance(value, Mapping):
        return {key: without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_paths(one) for one in value]
    return _last_component(value) if isinstance(value, str) else value


def public_recipe(path: Path) -> bytes:
    """A recipe file as YAML, without the paths of this machine."""
    values = without_paths(yaml.safe_load(path.read_text(encoding="utf-8")))
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True).encode()


def check_public(files: Mapping[str, Path | bytes], *folders: Path) -> None:
    """Raises ValueError for a text that contains the Hub token, the home folder, or one of the given folders."""
    token = get_token()
    homes = {str(place) for place in (Path.home(), *(folder.resolve() for folder in folders)) if len(place.parts) > 1}
    for name, content in files.items():
        if not name.endswith(TEXT):
            continue
        text = (content if isinstance(content, bytes) else content.read_bytes()).decode("utf-8", errors="replace")
        if token and token in text:
            raise ValueError(f"{name} contains the Hub token; remove it, then push again")
        for home in homes:
            if f"{home}/" in text:
                raise ValueError(f"{name} contains {home}, a folder of this machine; remove it, then push again")


def _last_component(text: str) -> str:
    prefix, colon, rest = text.partition(":")
    if colon and prefix in PREFIXES:
        return f"{prefix}:{_last_component(rest)}"
    if text.startswith(("~", "..")) or PurePosixPath(text).is_absolute():
        return PurePosixPath(text).name
    if text.startswith("file:") or PureWindowsPath(text).is_absolute():
        return PureWindowsPath(text).name
    return EMBEDDED.sub("", re.sub(r"\bfile:/+", "/", text))
