"""Requests for a style in what a user says: as the whole turn, or at its beginning or end.

    find_request("Say it faster.")                           # faster, for this answer
    find_request("请说慢一点")                                # slower, from now on
    find_request("Whisper: what is the capital of France?")  # whisper, and the question is "what is the capital …"

English and Mandarin; the words of each style are in `assets/styles.yaml`. Words that do not ask for a style are left
alone: a whole clause must be understood, from its first word to its last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

from speechgpt2.languages import Language, language_of
from speechgpt2.style import NORMAL, Style, named_style, table

MAX_LENGTH = 300  # characters of a turn in which a request is looked for
# What a clause is made of, besides the words of a style.
POLITE = {
    "en": r"(?:(?:please|ok|okay|now|and|but|then|hey|well|sorry|excuse me|no|yes)[, ]+)*",
    "zh": r"(?:请|麻烦|拜托|好的|好|嗯|那么|那|但是|但|你|您|[，, ])*",
}
ASK = {
    "en": r"(?:(?:can|could|would|will) you (?:please )?|i(?:'d| would) like you to |i want you to |try to |let's )?",
    "zh": r"(?:能不能|可不可以|能|可以|要)?",
}
MARK = {
    "en": r"(?:(?P<lasting>from now on|always|keep)[, ]+)?",
    "zh": r"(?:(?P<lasting>以后都?|从现在(?:起|开始)都?|一直|总是|接下来都?|都)|"
    r"(?P<once>这次|就这一次|这一句))?[，, ]*",
}
VERB = {
    "en": r"(?:(?P<verb>speak|speaking|talk|talking|be|sound|go|use)(?: to me)? |"
    r"(?P<again>say|tell|repeat|read|answer|give|do)"
    r"(?P<object>(?: me| it| that| this| the same| everything| your answer| the answer)*)"
    r"(?: once more| again| one more time)?,? )?(?:it )?",
    "zh": r"(?:(?P<object>把[它这那刚]\w{0,5}|刚才的话)?(?P<again>再|重复)?(?P<verb>说话|讲话|说|讲|念|读|回答|来)?"
    r"(?P<repeat>一遍|一次)?(?:一下)?得?[，, ]*)",
}
MORE = {"en": r"(?:a (?:little |bit )+|a lot |much |even |some(?:what)? |very |just )?", "zh": r"(?:稍微|再|更)?"}
TAIL = {
    "en": r"(?:[, ]+(?:please|now|to me|for me|again|ok|okay|then|from here|"
    r"(?P<lasting2>from now on|all the time|always)|(?P<once2>this time|just this once|just once|once)))*",
    "zh": r"(?:[，, ]*(?:说话|讲话|说|讲|念|读|回答|吧|吗|呢|好吗|好不好|可以吗|行吗|一下|"
    r"给我听|[跟对]我(?:说|讲)|告诉我|谢谢|"
    r"(?P<again2>再说)?(?P<repeat2>一遍|一次)))*",
}
AND = {"en": r"(?:,? and | and,? |, )", "zh": r"(?:又|并且|而且|、|，)"}
ENDS = " \t\n.?!,;:。？！，；：…\"'“”"
BREAKS = re.compile(r"[.?!,;:。？！，；：]+\s*|\s+[-–—]+\s*")
# Words that may also be what a user wants to hear or tell: they ask for a style only after a verb that fits.
WEAK = "whisper|happy|cheerful|sad|angry|calm|fast|slow|normal|more happy|more sad|more angry|more calm"
# Requests that begin or end a sentence without a pause.
SPEECH_ACT = r"(?:tell|say|read|count|sing|recite|repeat|explain|answer|spell|describe|give|whisper)\b"
QUESTION = r"(?:what|who|where|when|why|how|which|tell|count|can|could|is|are|do|does|say|read)\b"
SPEECH_ACT_ZH = r"(?!说话|讲话)(?:告诉|回答|说|讲|数|念|读|唱|背|介绍|解释|问)"
# With one of these words before it, an adverb describes something else: "tell me which animal is faster".
CLAUSE_WORDS = re.compile(
    r"\b(?:which|who|what|how|why|when|where|whether|if|that|is|are|was|were|do|does|did|can|after me)\b", re.IGNORECASE
)
MARKED = re.compile(r"(?:in|with|at|as) an? ", re.IGNORECASE)  # phrases that describe speech wherever they are
# What comes after these words is to be said, not followed.
QUOTING = re.compile(
    r"(?:\b(?:after me|say|spell|translate|write|read|words?|sentence)|跟我[说读念]|重复|翻译|写|读|念|怎么说)\W*$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class StyleRequest:
    """A user's request for a style.

    Attributes:
        names: The styles, by their keys in the table.
        lasting: Whether it holds from now on; otherwise for one answer.
        rest: The turn without the request; empty if it holds nothing else.
    """

    names: tuple[str, ...]
    lasting: bool
    rest: str = ""

    def applied(self, current: Style) -> Style:
        """Return the style that follows `current`: comparing ones add to it, others replace it."""
        for name in self.names:
            if name == NORMAL.name:
                current = NORMAL
            elif table()[name].compares:
                current = named_style(name).over(current)
            else:
                current = named_style(name)
        return current


def find_request(text: str) -> StyleRequest | None:
    """Return the request for a style in a turn of the user, None if there is none."""
    text = text.replace("’", "'").strip(ENDS)
    if not text or len(text) > MAX_LENGTH:
        return None
    language = language_of(text)
    return _clause(text, language, True) or _at_a_break(text, language) or _without_a_break(text, language)


def styles_in(text: str) -> tuple[str, ...]:
    """Return the styles that a description names, as in "Speak slowly and calmly", in their order."""
    found: dict[str, int] = {}
    for language in ("en", "zh"):
        for name in table():
            match = re.search(_words(name, language), text, re.IGNORECASE)
            if match is not None and name != NORMAL.name:
                found[name] = match.start()
    return tuple(sorted(found, key=lambda name: found[name]))


def _clause(text: str, language: Language, alone: bool) -> StyleRequest | None:
    """Read a clause that is nothing but a request. Beside a question, only "speak slowly" lasts, and not "slowly"."""
    match = _clause_pattern(language).fullmatch(text.strip(ENDS))
    if match is None:
        return None
    parts = {key.rstrip("2"): value for key, value in match.groupdict().items() if value}
    manner = parts["manner"]
    weak = language == "en" and re.fullmatch(WEAK, manner, re.IGNORECASE) is not None
    names = tuple(name for piece in re.split(AND[language], manner) if (name := _style_named(piece, language)))
    if not names or (weak and not _fits(manner.lower(), parts)):
        return None
    repeats = {"again", "object", "repeat"} & parts.keys() if language == "zh" else {"again"} & parts.keys()
    lasting = "lasting" in parts or not (repeats or "once" in parts or not (alone or "verb" in parts))
    return StyleRequest(names, lasting)


def _fits(manner: str, parts: dict[str, str]) -> bool:
    """Whether a word that is not an adverb asks for a style: "be happy" and "whisper" do, "happy" does not."""
    if manner == "whisper":
        return "verb" not in parts and ("again" not in parts or "object" in parts)
    return parts.get("verb", "").lower() in ("be", "sound", "go", "use", "speak", "talk") or "object" in parts


def _at_a_break(text: str, language: Language) -> StyleRequest | None:
    """Read a request before the first pause of a turn, or after its last one."""
    breaks = list(BREAKS.finditer(text))
    for match in reversed(breaks):
        quoted = QUOTING.search(text[: match.start()])
        if not quoted and (found := _clause(text[match.end() :], language, False)) is not None:
            return replace(found, rest=text[: match.end()].rstrip(" ,;:，；：-–—"))
    for match in breaks:
        if (found := _clause(text[: match.start()], language, False)) is not None:
            return replace(found, rest=text[match.end() :])
    return None


def _without_a_break(text: str, language: Language) -> StyleRequest | None:
    """Read a request that is part of a sentence: "count to five slowly", "用悄悄话告诉我…"."""
    for pattern in _sentence_patterns(language):
        match = pattern.fullmatch(text)
        if match is None:
            continue
        names = tuple(n for piece in re.split(AND[language], match["manner"]) if (n := _style_named(piece, language)))
        rest = match["rest"].strip()
        if names and rest.strip(ENDS) and (match.start("rest") or not _describes(match["manner"], rest)):
            return StyleRequest(names, False, rest)
    return None


def _describes(manner: str, rest: str) -> bool:
    """Whether an adverb at the end of a sentence may describe something else than the answer's sound."""
    return not MARKED.match(manner) and CLAUSE_WORDS.search(rest) is not None


@cache
def _words(name: str, language: Language) -> str:
    """Return a regular expression of the words that ask for a style."""
    words = "|".join(f"(?:{phrase})" for phrase in table()[name].phrases[language])
    words = re.sub(r"\((?!\?)", "(?:", words)
    return rf"\b(?:{words})\b" if language == "en" else f"(?:{words})"


@cache
def _manner(language: Language) -> str:
    one = f"{MORE[language]}(?:{'|'.join(_words(name, language) for name in table())})"
    return f"(?P<manner>{one}(?:{AND[language]}{one})*)"


@cache
def _clause_pattern(language: Language) -> re.Pattern[str]:
    before = POLITE[language] + ASK[language] + MARK[language] + POLITE[language] + VERB[language]
    extra = r"(?: it| that| this| to me)?(?: again)?" if language == "en" else ""
    return re.compile(before + _manner(language) + extra + TAIL[language], re.IGNORECASE)


@cache
def _sentence_patterns(language: Language) -> tuple[re.Pattern[str], ...]:
    polite, ask, manner = POLITE[language], ASK[language], _manner(language)
    forms: tuple[str, ...]
    if language == "zh":
        forms = (
            rf"{polite}{ask}{manner}地?(?P<rest>{SPEECH_ACT_ZH}.{{2,}})",
            rf"{polite}{ask}(?P<rest>.{{3,}}?)(?=用|以){manner}(?:说|讲|回答|告诉我|念)(?:吧|吗)?",
        )
    else:
        forms = (
            rf"{polite}{ask}(?P<manner>whisper) (?:to me |me )?(?P<rest>(?:{QUESTION}|the |a |an ).+)",
            rf"{polite}{ask}(?:speak|talk) {manner} (?:and )?(?P<rest>{QUESTION}.+)",
            rf"(?P<rest>{polite}{ask}{SPEECH_ACT} .+?) (?:but )?(?!(?:{WEAK})$){manner}(?: please)?",
        )
    return tuple(re.compile(form, re.IGNORECASE) for form in forms)


def _style_named(words: str, language: Language) -> str | None:
    """Return the style that some words ask for, without words like "a bit" before them."""
    for name in table():
        if re.fullmatch(MORE[language] + _words(name, language), words.strip(), re.IGNORECASE):
            return name
    return None
