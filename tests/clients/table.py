"""Print which features unmodified clients use successfully, as a Markdown table (docs/server.md).

    sg2 serve --port 8000
    python -m tests.clients.table http://127.0.0.1:8000 examples/question-1.wav

A cell is ✓ where the client gave what the feature promises, – where it was not tried, and else the error.
A client that is not installed has no column.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Check = Callable[[str, Path], Any]  # (address, recording) -> something true
NO_KEY = "none"


def openai_client(url: str) -> Any:
    import openai

    return openai.OpenAI(api_key=NO_KEY, base_url=f"{url}/v1", max_retries=0, timeout=120)


def spoken(recording: Path) -> list[Any]:
    data = base64.b64encode(recording.read_bytes()).decode()
    audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    return [{"role": "user", "content": [audio]}]


HELLO = [{"role": "user", "content": "Hello."}]


# openai-python


def openai_chat(url: str, _: Path) -> Any:
    return openai_client(url).chat.completions.create(model="mini", messages=HELLO).choices[0].message.content


def openai_chat_stream(url: str, _: Path) -> Any:
    return [*openai_client(url).chat.completions.create(model="mini", messages=HELLO, stream=True)]


def openai_chat_audio(url: str, recording: Path) -> Any:
    options: Any = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
    chat = openai_client(url).chat.completions.create(model="mini", messages=spoken(recording), **options)
    return chat.choices[0].message.audio.data


def openai_responses(url: str, _: Path) -> Any:
    return openai_client(url).responses.create(model="mini", input="Hello.").output_text


def openai_speech(url: str, _: Path) -> Any:
    return openai_client(url).audio.speech.create(model="mini", voice="alloy", input="Hello.").content


def openai_transcription(url: str, recording: Path) -> Any:
    options: Any = {"response_format": "verbose_json"}
    return openai_client(url).audio.transcriptions.create(model="mini", file=recording, **options).segments


def openai_transcription_stream(url: str, recording: Path) -> Any:
    events = [*openai_client(url).audio.transcriptions.create(model="mini", file=recording, stream=True)]
    return events[-1].type == "transcript.text.done"


def openai_realtime(url: str, _: Path) -> Any:
    async def talk() -> bool:
        import openai

        client = openai.AsyncOpenAI(api_key=NO_KEY, base_url=f"{url}/v1")
        async with client.realtime.connect(model="mini") as connection:
            content: Any = [{"type": "input_text", "text": "Hello."}]
            await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
            await connection.response.create()
            async for event in connection:
                if event.type == "response.done":
                    return event.response.status == "completed"
        return False

    return asyncio.run(talk())


# openai-agents


def agents_run(url: str, _: Path) -> Any:
    import openai
    from agents import Agent, OpenAIResponsesModel, RunConfig, Runner

    client = openai.AsyncOpenAI(api_key=NO_KEY, base_url=f"{url}/v1")
    agent = Agent("Host", model=OpenAIResponsesModel("mini", client))
    return asyncio.run(Runner.run(agent, "Hello.", run_config=RunConfig(tracing_disabled=True))).final_output


def agents_stream(url: str, _: Path) -> Any:
    import openai
    from agents import Agent, OpenAIChatCompletionsModel, RunConfig, Runner

    async def run() -> Any:
        client = openai.AsyncOpenAI(api_key=NO_KEY, base_url=f"{url}/v1")
        agent = Agent("Host", model=OpenAIChatCompletionsModel("mini", client))
        result = Runner.run_streamed(agent, "Hello.", run_config=RunConfig(tracing_disabled=True))
        return [event async for event in result.stream_events()] and result.final_output

    return asyncio.run(run())


# LangChain


def langchain_model(url: str, **options: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="mini", api_key=NO_KEY, base_url=f"{url}/v1", max_retries=0, **options)


def langchain_chat(url: str, _: Path) -> Any:
    return langchain_model(url).invoke("Hello.").content


def langchain_stream(url: str, _: Path) -> Any:
    return "".join(str(chunk.content) for chunk in langchain_model(url).stream("Hello."))


def langchain_responses(url: str, _: Path) -> Any:
    return langchain_model(url, use_responses_api=True).invoke("Hello.").content


def langchain_audio(url: str, recording: Path) -> Any:
    options = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
    answer = langchain_model(url, model_kwargs=options).invoke(spoken(recording))
    return answer.additional_kwargs["audio"]["data"]


# LiteLLM


def litellm_options(url: str) -> dict[str, Any]:
    return {"model": "openai/mini", "api_key": NO_KEY, "api_base": f"{url}/v1"}


def litellm_chat(url: str, _: Path) -> Any:
    import litellm

    return litellm.completion(messages=HELLO, **litellm_options(url)).choices[0].message.content


def litellm_stream(url: str, _: Path) -> Any:
    import litellm

    return [*litellm.completion(messages=HELLO, stream=True, **litellm_options(url))]


def litellm_speech(url: str, _: Path) -> Any:
    import litellm

    return litellm.speech(voice="alloy", input="Hello.", **litellm_options(url)).content


def litellm_transcription(url: str, recording: Path) -> Any:
    import litellm

    with recording.open("rb") as file:
        return litellm.transcription(file=file, **litellm_options(url)).text


CLIENTS: dict[str, tuple[str, dict[str, Check]]] = {
    "openai-python": ("openai", {
        "chat": openai_chat, "chat, streamed": openai_chat_stream, "chat, spoken": openai_chat_audio,
        "responses": openai_responses, "speech": openai_speech, "transcription": openai_transcription,
        "transcription, streamed": openai_transcription_stream, "realtime": openai_realtime,
    }),
    "openai-agents": ("agents", {"chat, streamed": agents_stream, "responses": agents_run}),
    "LangChain": ("langchain_openai", {
        "chat": langchain_chat, "chat, streamed": langchain_stream, "chat, spoken": langchain_audio,
        "responses": langchain_responses,
    }),
    "LiteLLM": ("litellm", {
        "chat": litellm_chat, "chat, streamed": litellm_stream, "speech": litellm_speech,
        "transcription": litellm_transcription,
    }),
}  # fmt: skip
FEATURES = tuple(dict.fromkeys(feature for _, checks in CLIENTS.values() for feature in checks))


def installed() -> list[str]:
    """The clients that can be tried here."""
    return [name for name, (module, _) in CLIENTS.items() if importlib.util.find_spec(module)]


def cell(client: str, feature: str, url: str, recording: Path) -> str:
    """Try a feature of a client."""
    check = CLIENTS[client][1].get(feature)
    if check is None:
        return "–"
    try:
        return "✓" if check(url, recording) else "nothing came"
    except Exception as error:
        return describe(error)


def describe(error: Exception) -> str:
    """Describe an error in a cell: the field that the server refuses, or the message."""
    body = getattr(error, "body", None)
    param = body.get("param") if isinstance(body, dict) else None
    return f"refused: `{param}`" if param else " ".join(str(error).split())[:60].replace("|", "/")


def main(url: str, recording: Path) -> None:
    """Print the table."""
    clients = installed()
    print("| |", " | ".join(clients), "|")
    print("| --- |" + " --- |" * len(clients))
    for feature in FEATURES:
        print(
            f"| {feature} |", " | ".join(cell(client, feature, url, recording) for client in clients), "|", flush=True
        )


if __name__ == "__main__":
    os.environ.setdefault("OPENAI_API_KEY", NO_KEY)
    main(sys.argv[1], Path(sys.argv[2]))
