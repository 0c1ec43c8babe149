"""The gateway through instructor: run in instructor's own environment by tests/e2e/test_sdks.py."""

import json
import sys

import instructor
import openai
from pydantic import BaseModel

url, key = sys.argv[1:]


class Weather(BaseModel):
    city: str
    degrees: int


client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
ASK = {"model": "steady", "response_model": Weather, "max_retries": 0}
by_tool = instructor.from_openai(client).chat.completions.create(
    **ASK, messages=[{"role": "user", "content": "instructor, by a tool"}]
)
by_schema = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA).chat.completions.create(
    **ASK, messages=[{"role": "user", "content": "instructor, by a schema"}]
)
parts = list(
    instructor.from_openai(client).chat.completions.create_partial(
        **ASK, messages=[{"role": "user", "content": "instructor, in parts"}]
    )
)
print(json.dumps({"objects": [by_tool.model_dump(), by_schema.model_dump(), parts[-1].model_dump()]}))
