"""JSON of a schema over REST, from a model with random weights, by an unmodified client."""

import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests import needs
from tests.engine.tiny import tiny_codec, tiny_lm
from tests.server.conftest import serving
from tests.server.test_tools import ASKED

openai = needs.module("openai", "dev")
needs.module("onnxruntime", "server")
needs.module("llguidance", "grammar")


class Weather(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: str = Field(max_length=8)
    degrees: int = Field(ge=-50, le=50)


@pytest.fixture(scope="module")
def client():
    from speechgpt2.duplex.dialogue import Dialogue
    from speechgpt2.engine.config import EngineConfig
    from speechgpt2.engine.engine import Engine
    from speechgpt2.lm.model import SpeechLM

    engine = Engine(tiny_codec(), tiny_lm(SpeechLM, tools=True), EngineConfig(slots=2, context=4096))
    engine.start()
    with serving(engine, Dialogue, slots=2) as served:
        yield openai.OpenAI(api_key="none", base_url=f"{served.http}/v1", max_retries=0)


MESSAGES = [{"role": "user", "content": ASKED}]


def test_chat_completion_is_parsed_by_the_client(client):
    reply = client.chat.completions.parse(model="mini", messages=MESSAGES, response_format=Weather)
    assert isinstance(reply.choices[0].message.parsed, Weather)


def test_response_is_parsed_by_the_client(client):
    reply = client.responses.parse(model="mini", input=ASKED, text_format=Weather)
    assert isinstance(reply.output_parsed, Weather)


def test_required_tool_of_random_weights_is_valid(client):
    tool = {"type": "function", "function": {"name": "weather", "parameters": Weather.model_json_schema()}}
    create = client.chat.completions.create
    reply = create(model="mini", messages=MESSAGES, tools=[tool], tool_choice="required", seed=1)
    for call in reply.choices[0].message.tool_calls:
        Weather.model_validate_json(call.function.arguments)


def test_schema_that_is_none_is_refused_by_name(client):
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError, match="cannot be followed"):
        client.chat.completions.create(model="mini", messages=MESSAGES, response_format=format)
