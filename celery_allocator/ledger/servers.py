"""From a URL to a client: one server, a primary that Sentinel names, or the node of a cluster that holds the pool.

This is the only place that reads a ledger's URL. Clients connect lazily; each new connection to a server that serves
the ledger is shown to ``on_connect`` right after redis-py's own handshake, before anything else is asked on it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.connection import ConnectionPool, SSLConnection, parse_url
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from celery_allocator.errors import SettingsError
from celery_allocator.ledger.shard import Address, Holder, HolderConnection, HolderSSLConnection

#: Seconds to wait for a connection and for a reply. A script takes far less than a millisecond.
SOCKET_TIMEOUT_S = 5.0
#: The same for a Sentinel, of which there are several: one that is down must not cost much.
SENTINEL_TIMEOUT_S = 1.0
#: Seconds after which an idle connection is tried before it is used.
HEALTH_CHECK_S = 30

ONE_SERVER = ("redis", "rediss", "unix", "redis+socket")
SENTINELS = ("redis+sentinel", "rediss+sentinel", "sentinel")
CLUSTER = ("redis+cluster", "rediss+cluster")
SCHEMES = (*ONE_SERVER, *SENTINELS, *CLUSTER)

OnConnect = Callable[[Any], None]


def is_server_url(url: str) -> bool:
    """Whether a ledger can live behind this URL."""
    return _scheme(url) in SCHEMES


def open_client(
    url: str,
    *,
    key: str = "",
    on_connect: OnConnect | None = None,
    transport_options: Mapping[str, Any] | None = None,
    use_ssl: Any = None,
) -> redis.Redis:
    """A client of the server behind ``url``. It connects when first used.

    ``key``: any key of the pool, which says what node of a cluster to use. ``on_connect`` is called with each new
    connection. ``transport_options`` and ``use_ssl``: Celery's own, for a URL that is its broker's: ``master_name`` and
    ``sentinel_kwargs`` of ``sentinel://``, and ``broker_use_ssl``. Raises :class:`SettingsError`, without the URL.
    """
    scheme = _scheme(url)
    if scheme not in SCHEMES:
        raise _malformed(f"the scheme {scheme!r}; there are {', '.join(f'{name}://' for name in SCHEMES)}")
    options = {
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": SOCKET_TIMEOUT_S,
        # Every script may be repeated safely, so a cut connection is retried at once.
        "retry": Retry(ExponentialBackoff(cap=1.0, base=0.05), 3),
        "health_check_interval": HEALTH_CHECK_S,
    }
    if on_connect is not None:
        options["redis_connect_func"] = _shown_to(on_connect)
    if scheme in SENTINELS:
        pool = _sentinel_pool(url, options, transport_options or {}, use_ssl)
    elif scheme in CLUSTER:
        pool = _cluster_pool(url, options, key)
    else:
        pool = ConnectionPool(**{**options, **_tls(use_ssl), **_parsed(_one_server(url))})
    try:
        pool.connection_class(**pool.connection_kwargs)
    except TypeError as error:  # an option that no connection knows
        raise _malformed(f"an option that is not known ({str(error).rsplit(' ', 1)[-1]})") from error
    except (ValueError, RedisError):
        raise _malformed("an option with a value that cannot be used") from None
    return redis.Redis.from_pool(pool)


def describe(client: redis.Redis) -> str:
    """Where the ledger is, for messages: as a URL, without user and password."""
    pool = client.connection_pool
    kwargs = pool.connection_kwargs
    tls = "s" if issubclass(pool.connection_class, SSLConnection) else ""
    if isinstance(pool, SentinelConnectionPool):
        # In order of address: the one that answered last stands first in redis-py's own list.
        asked = sorted(
            (sentinel.connection_pool.connection_kwargs["host"], sentinel.connection_pool.connection_kwargs["port"])
            for sentinel in pool.sentinel_manager.sentinels
        )
        return f"redis{tls}+sentinel://{_listed(asked)}/{pool.service_name}/{kwargs.get('db') or 0}"
    if "holder" in kwargs:
        return f"redis{tls}+cluster://{_listed(kwargs['holder'].nodes)}"
    if "path" in kwargs:
        return f"unix://{kwargs['path']}"
    return f"redis{tls}://{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}/{kwargs.get('db') or 0}"


def is_cluster(client: redis.Redis) -> bool:
    """Whether the client was opened for a Redis Cluster."""
    return "holder" in client.connection_pool.connection_kwargs


def _shown_to(on_connect: OnConnect) -> OnConnect:
    def connected(connection: Any) -> None:
        # A health check would reconnect a connection that fails here, and so come here again, without end.
        interval, connection.health_check_interval = connection.health_check_interval, 0
        try:
            connection.on_connect()  # redis-py's handshake: given a function of ours, it leaves that to us
            on_connect(connection)
        finally:
            connection.health_check_interval = interval
        connection.next_health_check = time.monotonic() + interval

    return connected


def _one_server(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "redis+socket":
        return url
    # kombu's and Celery's form of unix://
    database = parse_qs(parts.query).get("virtual_host", ["0"])[0].strip("/")
    _, at, _ = parts.netloc.rpartition("@")
    return f"unix://{parts.netloc if at else ''}{parts.path}?db={database}"


def _sentinel_pool(url: str, options: dict[str, Any], transport: Mapping[str, Any], use_ssl: Any) -> ConnectionPool:
    scheme = _scheme(url)
    if scheme == "sentinel":  # Celery's form: one URL per Sentinel, the rest in the transport's options
        first, *rest = url.split(";")
        login, nodes, path, query = _split(first, 26379)
        nodes += [node for other in rest if other for node in _split(other, 26379)[1]]
        master, database = transport.get("master_name"), path.strip("/")
        if not master:
            raise SettingsError(
                "the ledger is behind sentinel://, and broker_transport_options (or result_backend_transport_options) "
                "does not say its 'master_name'. Set it, or set allocator_backend_url to "
                "redis+sentinel://host:26379,host:26379/<master name>"
            )
    else:
        login, nodes, path, query = _split(url, 26379)
        master, _, database = path.strip("/").partition("/")
        if not master:
            raise _malformed("no name of a master: redis+sentinel://host:26379,host:26379/<master name>[/<db>]")
    if database and not database.isdigit():
        raise _malformed("a database that is not a number")
    for_sentinels = {name[9:]: value for name, value in query.items() if name.startswith("sentinel_")}
    query = {name: value for name, value in query.items() if not name.startswith("sentinel_")}
    base = "rediss" if scheme == "rediss+sentinel" else "redis"
    primary = {**_tls(use_ssl), **_parsed(f"{base}://{login}localhost/{database}?{urlencode(query)}")}
    secure = primary.pop("connection_class", None) is not None
    primary.pop("host")
    sentinel_kwargs: dict[str, Any] = {
        "socket_timeout": SENTINEL_TIMEOUT_S,
        "socket_connect_timeout": SENTINEL_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
    }
    if secure and for_sentinels.pop("ssl", "true").lower() not in ("0", "false", "no"):
        sentinel_kwargs |= {"ssl": True, **{k: v for k, v in primary.items() if k.startswith("ssl_")}}
    sentinel_kwargs |= {**for_sentinels, **(transport.get("sentinel_kwargs") or {})}
    try:
        sentinel = Sentinel(
            nodes,
            min_other_sentinels=int(transport.get("min_other_sentinels") or 0),
            sentinel_kwargs=sentinel_kwargs,
            **{**options, **primary, "ssl": secure},
        )
    except (TypeError, ValueError) as error:
        raise _malformed("an option for its Sentinels that is not known (sentinel_…)") from error
    found: ConnectionPool = sentinel.master_for(str(master)).connection_pool
    return found


def _cluster_pool(url: str, options: dict[str, Any], key: str) -> ConnectionPool:
    login, nodes, path, query = _split(url, 6379)
    if path.strip("/") not in ("", "0"):
        raise _malformed("a database, and Redis Cluster has only one: redis+cluster://host:6379,host:6379")
    secure = url.startswith("rediss")
    node = _parsed(f"{'rediss' if secure else 'redis'}://{login}localhost?{urlencode(query)}")
    node.pop("connection_class", None)
    node.pop("host")
    asking = {**options, **node, "ssl": secure, "retry": Retry(NoBackoff(), 0)}
    asking.pop("redis_connect_func", None)
    try:
        holder = Holder(nodes, key, asking)
    except (TypeError, ValueError) as error:
        raise _malformed("an option that cannot be used") from error
    cls = HolderSSLConnection if secure else HolderConnection
    return ConnectionPool(connection_class=cls, holder=holder, **{**options, **node})


def _split(url: str, default_port: int) -> tuple[str, list[Address], str, dict[str, str]]:
    """``user:password@``, the hosts, the path, the options."""
    parts = _URL.match(url)
    if parts is None:
        raise _malformed("no hosts")
    login, at, hosts = parts["netloc"].rpartition("@")
    nodes = []
    for host in hosts.split(","):
        match = _HOST.fullmatch(host)
        if match is None or int(match["port"] or 0) > 65535:
            raise _malformed("a host or port that cannot be read: host:port,host:port")
        nodes.append((unquote(match["six"] or match["name"]), int(match["port"] or default_port)))
    return login + at, nodes, unquote(parts["path"]), dict(parse_qsl(parts["query"] or ""))


#: urlsplit refuses several hosts in brackets.
_URL = re.compile(r"(?P<scheme>[A-Za-z+]+)://(?P<netloc>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?")
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.%]+)\]|(?P<name>[^\[\]:/\s]+))(?::(?P<port>\d{1,5}))?")


def _parsed(url: str) -> dict[str, Any]:
    """redis-py's reading of the URL, with Celery's spelling of ``ssl_cert_reqs`` understood."""
    try:
        parsed: dict[str, Any] = parse_url(url)
    except ValueError:  # its text can hold a part of the password
        raise _malformed(
            "a port or an option that cannot be read (in a password / ? # @ : are written %2F %3F %23 %40 %3A)"
        ) from None
    required = str(parsed.get("ssl_cert_reqs", ""))
    if required.startswith("CERT_"):
        parsed["ssl_cert_reqs"] = required.removeprefix("CERT_").lower()
    return parsed


def _tls(use_ssl: Any) -> dict[str, Any]:
    """``broker_use_ssl`` as connections take it."""
    if not use_ssl:
        return {}
    return {"connection_class": SSLConnection, **(use_ssl if isinstance(use_ssl, Mapping) else {})}


def _scheme(url: str) -> str:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", url)
    return match[1].lower() if match else ""


def _listed(nodes: Any) -> str:
    return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in nodes)


def _malformed(what: str) -> SettingsError:
    return SettingsError(f"the ledger's URL (allocator_backend_url, or the app's broker or result backend) has {what}")
