"""The rule file of class policy: the one of the home, else the one that comes with dds.

Decides which file is in force. Does not decide what a rule may say (placement/policy.py). Source: docs/spec/policy.md.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

from dds.placement.policy import POLICY_BYTES_MAX, Policy, parse_policy
from dds.primitives.errors import ConfigError, InputError
from dds.storage.home import Home, write_atomic

BUILT_IN: Final = "the policy that comes with dds"


def default_policy_text() -> str:
    """The rule file that comes with dds, comments and all."""
    return (resources.files("dds.placement") / "policy.toml").read_text(encoding="utf-8")


def load_policy(home: Home) -> Policy:
    """The rules in force for this home.

    Raises:
        ConfigError: the home's file does not hold; naming file, rule and key.
    """
    if home.policy_file.exists():
        return read_policy(home.policy_file)
    return parse_policy(default_policy_text(), BUILT_IN)


def read_policy(path: Path) -> Policy:
    """A rule file.

    Raises:
        ConfigError: it cannot be read, or does not hold.
    """
    try:
        with path.open("rb") as file:
            text = file.read(POLICY_BYTES_MAX + 1).decode()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error.reason}") from None
    return parse_policy(text, str(path))


def write_default_policy(home: Home, *, overwrite: bool) -> Path:
    """Copy the rule file that comes with dds into the home, to be edited.

    Raises:
        InputError: there is one already.
        ConfigError: it cannot be written.
    """
    if home.policy_file.exists() and not overwrite:
        raise InputError(f"{home.policy_file} is there already", hint="edit it; --force replaces it by the default rules")
    write_atomic(home.policy_file, default_policy_text().encode())
    return home.policy_file
