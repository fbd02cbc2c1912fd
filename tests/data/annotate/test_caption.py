"""Captions: of a language's clips, of speakers who differ from themselves, and in bounded memory."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np

from speechgpt2.data.annotate.caption import Captions, CaptionsConfig
from speechgpt2.data.record import Clip, Decision, Label, Language, Prosody, Speaker, Style


def clip(number, hertz=150.0, melody=3.0, rate=4.0, energy=-25.0, lang="en", speaker=""):
    prosody = Prosody(f0_mean=hertz, f0_std=melody, rate=rate, energy=energy)
    speakers = (Speaker(speaker),) if speaker else ()
    return Clip(f"c{number}", lang=Language(lang), prosody=prosody, speakers=speakers)


def captioned(clips, **config):
    return list(Captions(CaptionsConfig(**config))(lambda: iter(clips)))


def crowd(count=200, **fields):
    """Clips whose measures are spread evenly, independently of one another."""
    rng = np.random.default_rng(1)
    spread = rng.permuted(np.tile(np.linspace(0, 1, count), (4, 1)), axis=1).T.tolist()
    return [
        clip(n, 90 * 2 ** (1.5 * a), 1 + 3 * b, 2 + 4 * c, -35 + 20 * d, **fields)
        for n, (a, b, c, d) in enumerate(spread)
    ]


def test_caption_names_values_outside_the_middle_half():
    clips = captioned(crowd())
    for made in clips:
        prosody, text = made.prosody, made.style.caption_en
        ranks = (np.log2(prosody.f0_mean / 90) / 1.5, (prosody.rate - 2) / 4, (prosody.f0_std - 1) / 3)
        for rank, low, high in zip(ranks, ("low voice", "slowly", "flat"), ("high voice", "quickly", "lively")):
            if min(abs(rank - 0.25), abs(rank - 0.75)) > 0.01:
                assert (low in text) == (rank < 0.25) and (high in text) == (rank > 0.75)
        assert "loud" not in text and "soft" not in text  # whose microphone was it?
        assert made.labels_from["style"] == Label("captions", "1", round(200 / 220, 3))
    assert {made.style.caption_en for made in clips} >= {
        "A low voice, speaking slowly, with a flat melody.",
        "A voice of middle pitch, spoken as usual.",
    }
    slow = next(made for made in clips if made.style.caption_en == "A low voice, speaking slowly, with a flat melody.")
    assert slow.style.caption_zh == "嗓音低沉，语速较慢，语调平淡。"


def test_each_language_has_its_own_bins():
    fast = [
        replace(made, lang=Language("zh"), prosody=replace(made.prosody, rate=made.prosody.rate + 4))
        for made in crowd()
    ]
    clips = captioned([*crowd(), *fast])
    same = [one.style == other.style for one, other in zip(clips[:200], clips[200:])]
    assert np.mean(same) > 0.98  # but for those on an edge


def test_caption_compares_a_speaker_with_their_usual_values():
    usual = [clip(n, 220 + n % 3, 3.0, 5.5, -20.0, speaker="anna") for n in range(40)]
    tired = clip(40, 190, 1.5, 4.0, -30.0, speaker="anna")
    clips = captioned([*crowd(), *usual, tired])
    assert clips[-1].style.caption_en == (
        "A high voice, speaking more slowly than usual, more softly than usual, at a lower pitch than usual, "
        "with a flatter melody than usual."
    )
    assert clips[-1].style.caption_zh == "嗓音较高，语速比平时慢，音量比平时轻，音调比平时低，语调比平时平。"
    assert clips[-2].style.caption_en == "A high voice, spoken as usual."  # though it is fast for the language
    alone = captioned([*usual[:5], tired])
    assert all(made.style == Style() for made in alone)  # six clips are no measure


def test_captions_of_whispers_rejected_clips_and_ground_truth():
    whisper = replace(clip("w"), prosody=Prosody(rate=2.0, energy=-40.0))
    refused = replace(clip("r"), decisions=(Decision("rules", 1, False),))
    truth = replace(clip("t"), style=Style(caption_en="Sad."), labels_from={"style": Label("synthesis", kind="truth")})
    unknown = Clip("u", lang=Language("en"))
    made = captioned([*crowd(), whisper, refused, truth, unknown])[200:]
    assert made[0].style.caption_en == "A whisper, speaking slowly." and made[0].style.caption_zh == "耳语，语速较慢。"
    assert made[1:] == [refused, truth, unknown]


def test_caption_memory_does_not_grow_with_clips():
    count, alive, most = 3000, 0, 0

    def forget():
        nonlocal alive
        alive -= 1

    def read():
        nonlocal alive, most
        for n in range(count):
            one = clip(n, 100 + n % 100, speaker=f"s{n % 10}")
            alive += 1
            most = max(most, alive)
            weakref.finalize(one, forget)
            yield one

    assert sum(bool(each.style.caption_en) for each in Captions(CaptionsConfig())(read)) == count
    assert 0 < most < 10
