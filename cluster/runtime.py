"""Connecting to a Ray cluster, or starting one here: loopback only, with token authentication."""

import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AddressConfig:
    """Where the work runs."""

    address: str | None = None
    """A running cluster, "host:6379" or "auto"; RAY_ADDRESS counts too. Default: this machine."""


@dataclass(frozen=True, kw_only=True)
class RayConfig(AddressConfig):
    """Where the work runs."""

    num_cpus: int | None = None
    """CPUs of the Ray started here; default all."""

    def __post_init__(self) -> None:
        if self.num_cpus is not None and self.num_cpus < 1:
            raise ValueError(f"num_cpus is {self.num_cpus}; expected at least 1")


LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
LOOPBACK_ONLY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": LOOPBACK,
    "NCCL_SOCKET_IFNAME": f"={LOOPBACK}",  # this very one; by itself it would take loopback last of all
}
"""What makes Ray, and the process groups of training in it, bind 127.0.0.1 and nothing else."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # which frames a sweep's configuration, whatever is asked for
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how long a worker's second report waits at most; default 2
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",  # one thread per worker; processes are the parallelism
}


def prepare_environment(address: str | None) -> None:
    """Set what Ray reads when it is imported. Call it before the first `import ray`; later it raises.

    Args:
        address: of the cluster to connect to; None for one started here, which then listens on loopback only
            and demands a token.
    """
    wanted = dict(QUIET)
    if address is None:
        wanted |= LOOPBACK_ONLY | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    else:
        wanted |= {"RAY_AUTH_MODE": "token" if _has_token() else "disabled", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    # What keeps others out of a Ray started here is not left to what the environment happens to say.
    forced = {"RAY_AUTH_MODE", *LOOPBACK_ONLY} if address is None else set()
    missing = {
        name: value
        for name, value in wanted.items()
        if name not in os.environ or (name in forced and os.environ[name] != value)
    }
    if "ray" in sys.modules and address is None and LOOPBACK_ONLY.keys() & missing.keys():
        raise ValueError(
            "Ray was imported before its environment was prepared, so that it would listen on all addresses; "
            "call cluster.runtime.prepare_environment(None) before the first import of ray"
        )
    os.environ.update(missing)


@contextlib.contextmanager
def ray_session(config: RayConfig) -> Iterator[int]:
    """Connect to Ray, or start it; yields the number of CPUs of the cluster. What was started is stopped.

    Raises:
        ValueError: there is no cluster at the address.
    """
    address = config.address or os.environ.get("RAY_ADDRESS") or None
    prepare_environment(address)
    if address not in (None, "auto"):
        _check_reachable(address)

    import ray  # noqa: PLC0415  after its environment

    if ray.is_initialized():  # inside a job, a test or a notebook that is connected already
        yield int(ray.cluster_resources().get("CPU", 1))
        return
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=config.num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of a node that does not come up Ray says no more than that
        reason = " ".join(str(error).split())[:160]
        if address and ("AuthToken" in reason or "uthenticat" in reason):
            raise ValueError(
                f"the Ray cluster at {address!r} refuses the token of this machine; set "
                "RAY_AUTH_TOKEN to the cluster's, or put that into ~/.ray/auth_token"
            ) from None
        cure = "start one with `ray start --head`, check its token (RAY_AUTH_TOKEN), or leave out --address"
        raise ValueError(
            f"no Ray cluster at {address!r} ({reason}); {cure}"
            if address
            else f"Ray did not start here: {reason}; try again when this machine has less to do, and see "
            "that its temporary folder (RAY_TMPDIR) can be written to and has a short path"
        ) from None
    try:
        yield int(ray.cluster_resources().get("CPU", 1))
    finally:
        ray.shutdown()


def _has_token() -> bool:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", os.path.expanduser("~/.ray/auth_token"))
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or os.path.exists(path)


def _check_reachable(address: str) -> None:
    """Ray itself tries for twenty seconds or, where something else answers, for ever."""
    import grpc  # noqa: PLC0415  only where there is an address

    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f'address is {address!r}; expected "host:port" (Ray\'s port is 6379) or "auto"')
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=5)
    except grpc.FutureTimeoutError:
        raise ValueError(
            f"no Ray cluster at {address!r} (something answers there that is not Ray); give the address that "
            "`ray start --head` printed, or leave out --address to start Ray here"
        ) from None
    except OSError as error:
        raise ValueError(
            f"no Ray cluster at {address!r} ({error}); start one with `ray start --head`, "
            "or leave out --address to start Ray here"
        ) from None
