"""The gateway through LangChain's ChatOpenAI: run in its own environment by tests/e2e/test_sdks.py."""

import json
import sys

from langchain_openai import ChatOpenAI
from pydantic import BaseModel

url, key = sys.argv[1:]


class Weather(BaseModel):
    """How warm it is somewhere."""

    city: str
    degrees: int


model = ChatOpenAI(model="steady", base_url=url, api_key=key, max_retries=0)
call = model.bind_tools([Weather], tool_choice="any").invoke("langchain, a tool").tool_calls[0]
told = {
    "plain": model.invoke("langchain, plain").content,
    "stream": "".join(chunk.content for chunk in model.stream("langchain, plain")),
    "tool": [call["name"], call["args"]],
    "objects": [model.with_structured_output(Weather).invoke("langchain, an object").model_dump()],
}
print(json.dumps(told))
