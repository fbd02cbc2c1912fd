"""Options that several commands share, as dataclasses.

    @with_shared_options
    def say(text: str, sampling: SamplingOptions) -> None: ...

The command line is then `say TEXT --temperature … --seed …`. Typer alone makes one option of a parameter.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from speechgpt2.cli.common import CodecDType, CodecName, Device, DType, Quantize, spinner, torch_device, torch_dtype

if TYPE_CHECKING:
    from speechgpt2.chat import SpeechGPT
    from speechgpt2.lm.model import SpeechLM
    from speechgpt2.lm.sampling import SamplingParams
    from speechgpt2.loading import Sources


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of its parameters that are dataclasses."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}  # type: ignore[misc]
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _options(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def with_options(**values: Any) -> None:
        shared = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})  # type: ignore[arg-type]
            for name, group in groups.items()
        }
        command(**values, **shared)

    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def _options(group: type) -> list[inspect.Parameter]:
    """Return the fields of a dataclass as parameters."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)  # type: ignore[arg-type]
    ]


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded."""

    codec: CodecName = None
    device: Device = "auto"
    dtype: DType = None
    codec_dtype: CodecDType = None
    quantize: Quantize = None

    def sources(self, model: str, **greeting: Any) -> Sources:
        """Return the models to load.

        Args:
            model: The model's name.
            **greeting: The greeting that opens conversations: fields of `loading.Sources`.
        """
        from speechgpt2.loading import Sources
        from speechgpt2.nn.quantized import Quantization

        quantization = None if self.quantize is None else Quantization(self.quantize)
        dtype, codec_dtype = torch_dtype(self.dtype), torch_dtype(self.codec_dtype)
        return Sources(model, self.codec, None, dtype, quantization, codec_dtype=codec_dtype, **greeting)

    def load(self, model: str, **greeting: Any) -> SpeechGPT:
        """Load a model while a spinner shows. For the arguments see `sources`."""
        with spinner(f"loading {model}"):
            from speechgpt2.chat import SpeechGPT

            return SpeechGPT.load(self.sources(model, **greeting), torch_device(self.device))


@dataclass(frozen=True)
class SamplingOptions:
    """How answers are sampled."""

    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, help="Sampling temperature; 0 is greedy decoding. [default: the model's]", metavar="X"),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option(
            min=0, help="Sample from the K most likely tokens; 0 means from all. [default: the model's]", metavar="K"
        ),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Sample from the most likely tokens whose probabilities add up to P. [default: the model's]",
            metavar="P",
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0

    def params(self, lm: SpeechLM) -> SamplingParams:
        """Return the parameters of one row: the options, and the model's defaults for those that are absent."""
        from speechgpt2.lm.sampling import SamplingParams

        options: dict[str, Any] = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        config = replace(lm.config.sampling, **{name: value for name, value in options.items() if value is not None})
        return SamplingParams.from_config(config, self.seed, lm.device)
