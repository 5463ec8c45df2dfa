"""Replicas of the server under Ray Serve.

Ray's proxy listens, and Ray starts, replaces and counts replicas. Each replica is a whole server:
the application of `trimode serve`, with its options.
"""

from dataclasses import dataclass
from inspect import signature
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, create_model, model_validator
from ray import serve  # type: ignore[import-not-found]

from trimode.cli import options as opt
from trimode.cli.grouped import grouped
from trimode.cli.serve import (
    AccessOptions,
    LimitOptions,
    PictureOptions,
    RecordOptions,
    RequestDefaults,
    Served,
)
from trimode.errors import InputError
from trimode.ray.metrics import RayMetrics
from trimode.rows import near_miss
from trimode.server import create_app, freeze_memory

_REFUSALS = 64
"""Requests that Ray passes on to a replica that is full. The server refuses them with 429; Ray
would let any number of them wait, and no client would learn that the replicas are full."""
_OF_THE_PROXY = ("host", "port")
"""Options of `trimode serve` that a replica has no use for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLimits(LimitOptions):
    """As of `trimode serve`, but a replica that is to stop finishes the longest answer."""

    shutdown_timeout: float = LimitOptions().request_timeout + 30


@grouped
def _served(
    *,
    model: opt.ModelOptions,
    mode: opt.Mode = "auto",
    decoding: RequestDefaults,
    access: AccessOptions,
    limits: ReplicaLimits,
    pictures: PictureOptions,
    record: RecordOptions,
) -> Served:
    return Served(
        model=model,
        mode=mode,
        decoding=decoding,
        access=access,
        limits=limits,
        pictures=pictures,
        record=record,
    )


class _LongNames(BaseModel):
    """Takes options by the long names of the command line, with `-` or `_`."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        values: dict[str, Any] = {}
        for name, value in given.items():
            plain, known = str(name).replace("-", "_"), cls.model_fields
            if plain in _OF_THE_PROXY:
                raise InputError(name, "given", "Ray's proxy listens: set http_options")
            if plain not in known:
                meant = near_miss(plain, known)
                allowed = f"did you mean {meant}?" if meant else f"known: {', '.join(known)}"
                raise InputError(str(name), "no such option", allowed)
            if plain in values:
                raise InputError(str(name), "given twice", "give it once")
            values[plain] = value
        return values


_FIELDS: dict[str, Any] = {
    name: (option.annotation, option.default)
    for name, option in signature(_served).parameters.items()
}


class Options(create_model("Options", __base__=_LongNames, **_FIELDS)):
    """The options of `trimode serve`, but for its address."""


class UserConfig(BaseModel):
    """What changes in running replicas, without a restart."""

    model_config = ConfigDict(extra="forbid")

    mode: str | None = None
    """The mode of requests that give none. None: that of the options."""


class Replica:
    """One server; its application is built in the replica, and nothing of it is pickled."""

    def __init__(self, options: dict[str, Any]) -> None:
        """`options`: those of `Options`."""
        self._served = _served(**options)
        self._service = self._served.open(self._served.settings(), progress=False)
        self._metrics = RayMetrics(self._service.metrics.registry)
        freeze_memory()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray."""
        return create_app(self._service)

    def reconfigure(self, user_config: Any) -> None:
        """Called by Ray, at the start and when `user_config` changes.

        Raises:
            InputError: the model cannot run the mode.
        """
        config = UserConfig.model_validate(user_config or {})
        self._service.set_mode(config.mode or self._served.mode)

    async def check_health(self) -> None:
        """Called by Ray every few seconds; also brings Ray's counters up to date.

        Raises:
            RuntimeError: the engine is dead or stuck, so the replica must be replaced.
        """
        if (fault := self._service.worker.fault) is not None:
            raise RuntimeError(fault)
        self._metrics.update()


_DEPLOYMENT: Any = serve.deployment(name="trimode")(serve.ingress()(Replica))


def app(options: Options) -> serve.Application:
    """Build the application: `import_path: trimode.ray:app`, with `args` for the options.

    Raises:
        InputError: an option is wrong.
    """
    values = options.model_dump()
    settings = _served(**values).settings()  # refuse before replicas start
    deployment = _DEPLOYMENT.options(
        max_ongoing_requests=settings.max_sequences + settings.max_waiting + _REFUSALS,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
    )
    return deployment.bind(values)
