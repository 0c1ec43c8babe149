"""A LiteLLM key with a budget where there is no database: read by the LiteLLM proxy, in its own environment.

overspend_litellm.py copies it beside the proxy's configuration, which names both things in it.
"""

import os

from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.hooks.proxy_track_cost_callback import _ProxyDBLogger

charge = _ProxyDBLogger()
"""What charges a key and settles its reservations. With a database the proxy adds it by itself."""


async def user_api_key_auth(request: object, api_key: str) -> UserAPIKeyAuth:
    """Every key is the same one."""
    return UserAPIKeyAuth(api_key=api_key, max_budget=float(os.environ["OVERSPEND_BUDGET_USD"]))
