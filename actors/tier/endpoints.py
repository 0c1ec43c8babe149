"""From a tier's settings to the transport that sends: reads the key where it is used, in the tier actor's own process."""

import os
from itertools import cycle

from actors.errors import ConfigError
from actors.settings import TierSettings
from actors.tier.sdk import SdkTransport
from actors.tier.transport import Endpoint, Reply, Secret, Streamed, Transport
from actors.tier.wire import WireTransport

__all__ = ["make_transport"]


class _Several:
    """Several endpoints that serve the same model, asked in turn."""

    def __init__(self, transports: list[Transport]) -> None:
        self._transports = transports
        self._turn = cycle(transports)

    async def send(self, path: str, body: bytes, timeout_s: float) -> Reply:
        return await next(self._turn).send(path, body, timeout_s)

    async def stream(self, path: str, body: bytes, first_byte_timeout_s: float, stall_timeout_s: float) -> Streamed:
        return await next(self._turn).stream(path, body, first_byte_timeout_s, stall_timeout_s)

    async def aclose(self) -> None:
        for transport in self._transports:
            await transport.aclose()


def make_transport(settings: TierSettings) -> tuple[Transport, tuple[str, ...]]:
    """The tier's transport, and every secret it holds (to be taken out of whatever an endpoint says).

    Raises ConfigError when the key's variable is not set in this process.
    """
    key: Secret | None = None
    if settings.api_key_env is not None:
        value = os.environ.get(settings.api_key_env, "")
        if not value:
            raise ConfigError(f"the environment variable {settings.api_key_env} is not set where the tier's actor runs")
        key = Secret(value)
    endpoints = [Endpoint(url, key) for url in settings.base_url]
    kind = WireTransport if settings.transport == "wire" else SdkTransport
    transports: list[Transport] = [kind(endpoint) for endpoint in endpoints]
    secrets = tuple(dict.fromkeys(secret for endpoint in endpoints for secret in endpoint.secrets()))
    transport: Transport = transports[0] if len(transports) == 1 else _Several(transports)
    return transport, secrets
