"""The gateway through litellm: run in litellm's own environment by tests/e2e/test_sdks.py."""

import json
import sys

import litellm

url, key = sys.argv[1:]
ASK = {"model": "openai/steady", "api_base": url, "api_key": key, "num_retries": 0}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": json.loads(sys.stdin.read())}}

plain = litellm.completion(**ASK, messages=[{"role": "user", "content": "litellm, plain"}])
stream = litellm.completion(**ASK, messages=[{"role": "user", "content": "litellm, plain"}], stream=True)
heard = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
called = litellm.completion(
    **ASK, messages=[{"role": "user", "content": "litellm, a tool"}], tools=[TOOL], tool_choice="required"
)
call = called.choices[0].message.tool_calls[0]
told = {
    "plain": plain.choices[0].message.content,
    "stream": heard,
    "tool": [call.function.name, json.loads(call.function.arguments)],
    "tokens": plain.usage.completion_tokens,
}
print(json.dumps(told))
