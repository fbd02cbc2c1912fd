"""Write typed questions with answers, from the skills of the curriculum: typed.py FOLDER COUNT.

The folder can be given to `sg2 train lm --data`. Half of the questions are sums and differences, the largest skills.
"""

import json
import random
import sys
from pathlib import Path

from speechgpt2.curriculum.skills import draw_exchange, typed_variants

folder, count = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
rng = random.Random("typed")
with (folder / "dialogues.jsonl").open("w", encoding="utf-8") as file:
    for number in range(count):
        exchange = draw_exchange(rng, ("en", "zh")[number % 2], rng.choice([None, None, "sum", "difference"]))
        question = rng.choice([exchange.question, *typed_variants(exchange, rng)])
        turns = {"user": question, "assistant": exchange.reply}
        messages = [{"role": role, "content": text} for role, text in turns.items()]
        file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
