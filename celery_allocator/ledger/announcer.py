"""What every new connection of a ledger's client asks first: is this still the server that the ledger was on?

A server that has restarted, or a replica that was promoted, may lack the last writes; the script then sees to it that
nothing is granted before the workers have reported (``_epoch.lua``). A ledger of another schema is refused here, so
that no client of this version touches it.
"""

from __future__ import annotations

import re
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError, NoPermissionError, NoScriptError, ReadOnlyError, ResponseError

from celery_allocator.errors import LedgerError, LedgerSchemaError
from celery_allocator.ledger import keys, scripts
from celery_allocator.ledger.replies import Options

#: Milliseconds for which granting pauses at least after the server has changed: all clients have connected again then.
SHORTEST_PAUSE_MS = 2000

#: What an older server says of a script whose first line gives its flags.
_TOO_OLD = "user_script:1: unexpected symbol near '#'"

#: What a server says to a user who may run scripts, but not the first command of this one.
_MAY_NOT_READ = re.compile("ACL failure in script: .*'hget'", re.IGNORECASE)


class Announcer:
    """Called with each new connection, after its handshake. Shared by the connections of one client."""

    def __init__(self, pool: str, options: Options) -> None:
        self.pool = pool
        #: The run of the server that was met last.
        self.run_id = ""
        self._args = (1, keys.prefix(pool), "", *options.common(), keys.SCHEMA, SHORTEST_PAUSE_MS)

    def __call__(self, connection: Any) -> None:
        """Ask. Raises :class:`LedgerSchemaError`; a connection error where the server is a read-only replica;
        :class:`LedgerError` where it is too old, or a node of a cluster without the pool.
        """
        script = scripts.load("announce")
        try:
            try:
                reply = _ask(connection, "EVALSHA", script.sha, *self._args)
            except NoScriptError:
                reply = _ask(connection, "EVAL", script.source, *self._args)
        except ReadOnlyError as error:
            connection.disconnect()
            raise RedisConnectionError(f"it is a read-only replica: {error}") from error
        except NoPermissionError:  # a user who only reads, and so need not tell
            return
        except ResponseError as error:
            if _MAY_NOT_READ.search(str(error)):  # a recorder, which may read the event stream and nothing else
                return
            connection.disconnect()
            if isinstance(error, MovedError) or str(error).startswith("MOVED"):
                raise LedgerError(
                    f"the server is a node of a Redis Cluster, and does not hold pool {self.pool!r}: "
                    "set allocator_backend_url to redis+cluster://host:port,host:port"
                ) from error
            if _TOO_OLD in str(error):
                raise LedgerError("the server is older than Redis 7.0 or Valkey 7.2, which the ledger needs") from error
            raise
        run_id, schema = (part.decode() if isinstance(part, bytes) else str(part) for part in reply)
        if schema != str(keys.SCHEMA):
            # Not to be taken from the pool of connections as one that has asked.
            connection.disconnect()
            raise LedgerSchemaError(
                f"the ledger of pool {self.pool!r} has schema {schema}, this version of celery-allocator speaks "
                f"{keys.SCHEMA}: run the same version everywhere, or use another pool (allocator_pool)"
            )
        self.run_id = run_id


def _ask(connection: Any, *command: Any) -> Any:
    connection.send_command(*command)
    return connection.read_response()
