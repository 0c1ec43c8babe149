"""The gateway through pydantic-ai: run in its own environment by tests/e2e/test_sdks.py."""

import asyncio
import json
import sys

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

url, key = sys.argv[1:]


class Weather(BaseModel):
    city: str
    degrees: int


async def main() -> None:
    model = OpenAIChatModel("steady", provider=OpenAIProvider(base_url=url, api_key=key))
    plain = await Agent(model).run("pydantic-ai, plain")
    async with Agent(model).run_stream("pydantic-ai, plain") as stream:
        heard = [text async for text in stream.stream_text(delta=True)]
    by_tool = await Agent(model, output_type=Weather).run("pydantic-ai, an object")
    told = {"plain": plain.output, "stream": "".join(heard), "objects": [by_tool.output.model_dump()]}
    print(json.dumps(told))


asyncio.run(main())
