"""Writes RabbitMQ's definitions file: users with their passwords' hashes and least permissions.

A broker that imports it when it boots has every user before anybody can connect.
"""

import hashlib
import os
import re
import secrets
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from command_service.broker_users.permissions import Role, patterns, rights
from shared.errors import SettingsError
from shared.settings import secret

ADMINISTRATOR: Final = "administrator"
MONITORING: Final = "monitoring"
TAGS: Final = (ADMINISTRATOR, MONITORING)
"""What RabbitMQ itself knows users by: who may do everything, and who may see how much waits."""
SALT_BYTES: Final = 4
"""As RabbitMQ has it."""


@dataclass(frozen=True)
class User:
    """A user to define: the roles that it has, or else a tag of RabbitMQ's own."""

    name: str
    roles: tuple[Role, ...]
    tags: tuple[str, ...] = ()

    @property
    def password_variable(self) -> str:
        """The variable that its password is in, or with `_FILE` the file's name."""
        return "PASSWORD_" + re.sub(r"\W", "_", self.name).upper()


def read_user(text: str) -> User:
    """Read `clinic-a=asker,inquirer`; raises SettingsError."""
    name, _, roles = text.partition("=")
    try:
        if roles in TAGS:
            return User(name, (), (roles,))
        return User(name, tuple(map(Role, roles.split(","))))
    except ValueError:
        known = ", ".join((*Role, *TAGS))
        raise SettingsError(f"{text!r} must be NAME=ROLE[,ROLE…] with roles of {known}") from None


def definitions(
    vhost: str,
    users: Sequence[User],
    environment: Mapping[str, str] = os.environ,
    new_salt: Callable[[int], bytes] = secrets.token_bytes,
) -> dict[str, Any]:
    """Define users in a virtual host; raises SettingsError where a password is not set."""
    return {
        "vhosts": [{"name": vhost}],
        "users": [
            {
                "name": user.name,
                "password_hash": password_hash(_password(user, environment), new_salt(SALT_BYTES)),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": list(user.tags),
            }
            for user in users
        ],
        "permissions": [
            {"user": user.name, "vhost": vhost, **_permissions(user)} for user in users
        ],
        "topic_permissions": [
            {
                "user": user.name,
                "vhost": vhost,
                "exchange": topic.exchange,
                "write": topic.write,
                "read": topic.read,
            }
            for user in users
            if user.roles
            for topic in rights(user.name, user.roles).topics
        ],
    }


def password_hash(password: str, salt: bytes) -> str:
    """Hash as RabbitMQ's documentation on passwords describes it."""
    return b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _permissions(user: User) -> dict[str, str]:
    if ADMINISTRATOR in user.tags:
        return {"configure": ".*", "write": ".*", "read": ".*"}
    return patterns(rights(user.name, user.roles))


def _password(user: User, environment: Mapping[str, str]) -> str:
    password = secret(user.password_variable, environment)
    if not password:
        raise SettingsError(f"{user.password_variable} is not set: give {user.name} a password")
    return password
