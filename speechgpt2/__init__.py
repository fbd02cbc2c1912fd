"""speechgpt2: open real-time spoken dialogue. See the README.

The public names are imported on first use, so that `import speechgpt2` and `sg2 --help` are fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechgpt2.chat import Conversation as Conversation
    from speechgpt2.chat import Reply as Reply
    from speechgpt2.chat import SpeechGPT as SpeechGPT
    from speechgpt2.codec.model import Codec as Codec
    from speechgpt2.lm.model import SpeechLM as SpeechLM
    from speechgpt2.lm.sampling import SamplingParams as SamplingParams
    from speechgpt2.types import Turn as Turn

_MODULES = {
    "Codec": "codec.model",
    "SpeechLM": "lm.model",
    "SamplingParams": "lm.sampling",
    "SpeechGPT": "chat",
    "Conversation": "chat",
    "Reply": "chat",
    "Turn": "types",
}
__all__ = ["Codec", "Conversation", "Reply", "SamplingParams", "SpeechGPT", "SpeechLM", "Turn"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'speechgpt2' has no attribute '{name}'")
    return getattr(import_module(f"speechgpt2.{_MODULES[name]}"), name)
