"""A server that runs with ``configs/redis-acl.conf`` as it is shipped, passwords aside."""

from __future__ import annotations

import re
from pathlib import Path

import redis

from tests.support.processes import ROOT
from tests.support.redis_server import RedisServer

FILE = ROOT / "configs" / "redis-acl.conf"
USERS = ("producer", "worker", "operator", "dashboard", "recorder", "brain")
ADMIN = "user admin on >admin-secret ~* &* +@all\nuser default off\n"


def users() -> dict[str, str]:
    """Each user's line."""
    return {line.split()[1]: line for line in FILE.read_text().splitlines() if line.startswith("user ")}


def broker_selectors() -> dict[str, str]:
    """What the file's comments add to a user's line where the broker is on the same server."""
    found = re.findall(r"^# ([a-z, ]+): (\(.*\))$", FILE.read_text(), re.MULTILINE)
    return {user.strip(): selector for named, selector in found for user in named.split(",")}


def password(user: str) -> str:
    """The password that the test puts in place of the file's."""
    return f"{user}-secret"


class AclServer(RedisServer):
    """``default`` is off, as the file advises; the test itself is ``admin``."""

    def __init__(self, directory: Path, *, broker: bool = False) -> None:
        text = FILE.read_text()
        for user, line in users().items():
            more = f"{line} {broker_selectors()[user]}" if broker and user in broker_selectors() else line
            text = text.replace(line, more.replace(f">CHANGE-ME-{user}", f">{password(user)}"))
        directory.mkdir(parents=True, exist_ok=True)
        conf = directory / "redis-acl.conf"
        conf.write_text(f"{text}\n{ADMIN}")
        # DEBUG is off by default; here it is the users' rights that must forbid it.
        super().__init__(directory, "--include", str(conf), "--enable-debug-command", "yes")

    def client(self, **options: object) -> redis.Redis:
        return redis.Redis.from_url(self.socket_url, username="admin", password=password("admin"), **options)

    def url_of(self, user: str, database: int = 0) -> str:
        """URL for one of the file's users."""
        return f"redis://{user}:{password(user)}@127.0.0.1:{self.port}/{database}"

    def refused(self) -> list[str]:
        """What was refused to whom since the log was last emptied, for messages."""
        with self.client() as admin:
            return [f"{row['username']}: {row['reason']} {row['object']} ({row['context']})" for row in admin.acl_log()]
