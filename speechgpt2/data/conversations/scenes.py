"""The scenes that come with the project: a user and the assistant, and people among themselves.

Texts hold no digits or abbreviations, Mandarin ones only hanzi and punctuation: they are spoken as they stand.
"""

from __future__ import annotations

from functools import cache

from speechgpt2.data.conversations.grammar import Scene

_EN_RULES: dict[str, tuple[str, ...]] = {
    "hello": ("Hello!", "Hi there.", "Good morning.", "Good evening."),
    "yes": ("mm-hm", "right", "okay", "I see", "yes", "sure"),
    "thanks": ("Thank you.", "Thanks a lot.", "Great, thanks."),
    "dish": ("the soup", "the fish", "a salad", "the noodles", "the chicken", "a cheese sandwich"),
    "drink": ("a glass of water", "a cup of tea", "orange juice", "a coffee", "some lemonade"),
    "city": ("London", "Paris", "Rome", "Berlin", "Madrid", "Vienna"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "hour": ("eight", "nine", "ten", "eleven", "noon", "two", "three", "four"),
    "weather": ("sunny and warm", "cloudy and cool", "rainy", "windy and cold", "foggy in the morning"),
    "platform": ("the first platform", "the second platform", "platform five", "platform nine"),
    "thing": ("the printer", "the lamp", "my phone", "the washing machine", "the radio"),
    "trouble": ("makes a strange noise", "does not start", "stops after a minute", "is very slow"),
    "remedy": ("switch it off and on again", "check the cable", "wait for ten minutes", "look into the manual"),
    "manner": ("fast", "slow", "high", "low", "loud", "soft", "whisper", "sad", "happy"),
    "how_fast": ("Can you say it faster?", "A bit quicker, please."),
    "how_slow": ("Could you say that more slowly?", "Slower, please."),
    "how_whisper": ("Whisper it.", "Can you whisper that?"),
    "how_sad": ("Say it in a sad voice.", "Read it as if you were sad."),
    "how_happy": ("Say it happily.", "Read it in a cheerful voice."),
    "how_loud": ("Louder, please.", "Can you speak up?"),
    "how_soft": ("Softer, please.", "Not so loud, please."),
    "saying": (
        "the early bird catches the worm", "still waters run deep", "every cloud has a silver lining",
        "a rolling stone gathers no moss", "all that glitters is not gold",
    ),
    "poem": (
        "The sun was shining on the sea, shining with all his might.",
        "Tiger, tiger, burning bright, in the forests of the night.",
        "Twinkle, twinkle, little star, how I wonder what you are.",
    ),
    "story": (
        "Once there was a king who never laughed. He asked everyone in the land to tell him a joke",
        "A long time ago, a fox lived near the river. Every night it went to the village to look for food",
    ),
}  # fmt: skip

_EN: dict[str, str] = {
    "restaurant": """
        waiter: {hello} Are you ready to order?
        guest: I would like {=dish}, and {=drink}, please.
        waiter~ {yes}
        waiter{order dish={=dish} drink={=drink}}: So that is {=dish} and {=drink}. It takes about ten minutes.
        guest?: That is fine. {thanks}
    """,
    "travel": """
        traveller: Excuse me, when does the next train to {=city} leave?
        clerk{timetable to={=city}}: It leaves at {hour}, from {=platform}, and you have to change trains once
        traveller! Sorry, which platform was it?
        clerk[slow]: {=platform}.
        traveller: {thanks}
    """,
    "weather": """
        user: What will the weather be like in {=city} on {=day}?
        assistant{weather city={=city} day={=day}}: On {=day} it will be {weather} in {=city}.
        user?: And at night?
        assistant?: It will be {weather}.
        user: {thanks}
    """,
    "repair": """
        customer: {hello} I have a problem with {=thing}. It {=trouble}, and I do not know what to do.
        engineer~ {yes}
        engineer: I see. First, {remedy}. Then call me again.
        customer: I did that, and it still {=trouble}.
        engineer: Then please bring it to us on {day}.
    """,
    "faster": "\n".join((
        "user: Tell me a saying.", "assistant: {=saying}.", "user: {how_fast}", "assistant[fast]: {=saying}.",
        "user?: {thanks}",
    )),
    "slower": "user: Tell me a saying.\nassistant: {=saying}.\nuser: {how_slow}\nassistant[slow]: {=saying}.",
    "whisper": "user: Tell me a saying.\nassistant: {=saying}.\nuser: {how_whisper}\nassistant[whisper]: {=saying}.",
    "sad": "user: Recite something.\nassistant: {=poem}\nuser: {how_sad}\nassistant[sad]: {=poem}",
    "happy": "user: Recite something.\nassistant: {=poem}\nuser: {how_happy}\nassistant[happy]: {=poem}",
    "louder": "user: Recite something.\nassistant: {=poem}\nuser: {how_loud}\nassistant[loud]: {=poem}",
    "softer": "user: Recite something.\nassistant: {=poem}\nuser: {how_soft}\nassistant[soft]: {=poem}",
    "story": """
        user: Tell me a story, please.
        assistant: {story}.
        user~ {yes}
        user! Wait, I have to go. Tell me the rest on {day}.
        assistant: Of course. Until then!
    """,
}  # fmt: skip

_ZH_RULES: dict[str, tuple[str, ...]] = {
    "hello": ("你好！", "您好！", "早上好！", "晚上好！"),
    "yes": ("嗯", "对", "好的", "是的", "嗯嗯"),
    "thanks": ("谢谢！", "太好了，谢谢你。", "多谢。"),
    "dish": ("一碗面条", "一盘饺子", "一份炒饭", "一条鱼", "两个包子"),
    "drink": ("一杯茶", "一杯咖啡", "一瓶水", "一杯牛奶"),
    "city": ("北京", "上海", "广州", "南京", "西安", "成都"),
    "day": ("明天", "后天", "星期五", "周末"),
    "hour": ("八点", "九点半", "十点", "下午两点", "晚上七点"),
    "weather": ("晴天，很暖和", "阴天，有点冷", "小雨", "大风"),
    "platform": ("一号站台", "二号站台", "五号站台"),
    "how_fast": ("说快一点。", "请你再说一遍，快一点。"),
    "how_slow": ("请说慢一点。", "慢点儿再说一遍。"),
    "how_whisper": ("小声点，用气声说。", "悄悄地告诉我。"),
    "how_sad": ("用伤心的语气说。", "请伤心地念一遍。"),
    "how_happy": ("用高兴的语气说。", "开心一点再说一遍。"),
    "saying": ("一寸光阴一寸金", "千里之行，始于足下", "有志者事竟成", "百闻不如一见"),
    "poem": ("床前明月光，疑是地上霜。", "春眠不觉晓，处处闻啼鸟。", "白日依山尽，黄河入海流。"),
    "story": (
        "从前有一个国王，他从来不笑，请全国的人给他讲笑话",
        "很久以前，河边住着一只狐狸，每天晚上都去村子里找吃的",
    ),
}

_ZH: dict[str, str] = {
    "restaurant": """
        服务员: {hello}您想吃点什么？
        客人: 我要{=dish}，再来{=drink}。
        服务员~ {yes}
        服务员{order dish={=dish} drink={=drink}}: {=dish}，{=drink}，请稍等。
        客人?: {thanks}
    """,
    "travel": """
        旅客: 请问去{=city}的火车几点开？
        售票员{timetable to={=city}}: {hour}开，在{=platform}上车，路上还要换一次车，别忘了带身份证
        旅客! 不好意思，几号站台？
        售票员[slow]: {=platform}。
        旅客: {thanks}
    """,
    "weather": """
        用户: {=city}{=day}天气怎么样？
        助手{weather city={=city} day={=day}}: {=city}{=day}{weather}。
        用户: {thanks}
    """,
    "faster": "用户: 给我说一句俗话。\n助手: {=saying}。\n用户: {how_fast}\n助手[fast]: {=saying}。",
    "slower": "用户: 给我说一句俗话。\n助手: {=saying}。\n用户: {how_slow}\n助手[slow]: {=saying}。",
    "whisper": "用户: 给我说一句俗话。\n助手: {=saying}。\n用户: {how_whisper}\n助手[whisper]: {=saying}。",
    "sad": "用户: 背一首诗吧。\n助手: {=poem}\n用户: {how_sad}\n助手[sad]: {=poem}",
    "happy": "用户: 背一首诗吧。\n助手: {=poem}\n用户: {how_happy}\n助手[happy]: {=poem}",
    "story": """
        用户: 给我讲个故事吧。
        助手: {story}。
        用户~ {yes}
        用户! 等一下，我有事，{day}再讲吧。
        助手: 好的，再见！
    """,
}


@cache
def scenes(lang: str) -> dict[str, Scene]:
    """The scenes of a language ("en", "zh") by name."""
    texts, rules = {"en": (_EN, _EN_RULES), "zh": (_ZH, _ZH_RULES)}[lang]
    return {name: Scene(name, lang, text, rules) for name, text in texts.items()}
