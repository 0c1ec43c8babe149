"""From a tier's settings to the transports that send, one per endpoint: reads the key where it is used, in the tier actor's own process."""

import os

from actors.errors import ConfigError
from actors.keys import FILE, find_key
from actors.settings import TierSettings
from actors.tier.sdk import SdkTransport
from actors.tier.transport import Endpoint, Secret, Transport
from actors.tier.wire import WireTransport

__all__ = ["make_transports"]


def make_transports(settings: TierSettings) -> tuple[list[Transport], tuple[str, ...]]:
    """A transport for each of the tier's endpoints, and every secret they hold (to be taken out of whatever one says).

    Raises ConfigError when the key is not to be found in this process.
    """
    key: Secret | None = None
    if settings.api_key_env is not None:
        value = find_key(settings.api_key_env, os.environ)
        if not value:
            name = settings.api_key_env
            raise ConfigError(f"neither {name} nor {name}{FILE} is set in the environment where the tier's actor runs")
        key = Secret(value)
    endpoints = [Endpoint(url, key) for url in settings.base_url]
    kind = WireTransport if settings.transport == "wire" else SdkTransport
    secrets = tuple(dict.fromkeys(secret for endpoint in endpoints for secret in endpoint.secrets()))
    return [kind(endpoint) for endpoint in endpoints], secrets
