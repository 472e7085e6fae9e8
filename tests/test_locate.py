"""Where the score of a generation is: rules, whole labels, single tokens, and when decoding may stop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import probes
from probes.encoding import encode
from probes.errors import ProbesError, ScoreTokenError
from probes.locate import (
    DEFAULT_ANCHOR,
    Located,
    ScoreFinder,
    ScoreRule,
    generated_spellings,
    locate,
    running_text,
)
from tests import tiny

KINDS = ("digits", "merged", "sentencepiece")


def run(tokens, scale="1..5", rule="anchor", prefill="", **options):
    """Feed tokens given as text or bytes; the result, and the step at which decoding may stop (None: never)."""
    pieces = [token if isinstance(token, bytes) else token.encode() for token in tokens]
    parsed = probes.Scale.parse(scale, **options)
    # Spelled as generated_spellings has it; a token's id is its place in the vocabulary.
    vocabulary = sorted(set(pieces))
    labels = {label: index for index, label in enumerate(parsed.labels)}
    if parsed.case:
        labels |= {label.capitalize(): index for label, index in labels.items()}
    spelled = {text.encode(): index for label, index in labels.items() for text in (label, " " + label)}
    spellings = {number: spelled[piece] for number, piece in enumerate(vocabulary) if piece in spelled}

    def decode(ids):
        assert len(ids) <= 4, "more was decoded again than a character can take"
        return b"".join(vocabulary[i] for i in ids).decode("utf-8", errors="replace")

    ids = [vocabulary.index(piece) for piece in pieces]
    arguments = (ScoreRule.parse(rule), parsed, spellings, decode, prefill)
    finder = ScoreFinder(*arguments)
    stop = None
    for step, token in enumerate(ids):
        if finder.feed(token) and stop is None:
            stop = step
    assert finder.result() == finder.result() == locate(ids, *arguments)
    return finder.result(), stop


def label_in(text: str, scale="1..5", rule="anchor", **options) -> str | None:
    """The label that is found in a text of one token a character, checked to be the one at its step."""
    found, _ = run(list(text), scale, rule, **options)
    if found is None:
        return None
    label = probes.Scale.parse(scale, **options).labels[found.label]
    assert text[found.step].lower() == label.lower()
    return label


@pytest.mark.parametrize(
    ("rule", "step", "label", "stop"), [("anchor", 12, 3, 13), ("first", 2, 2, 3), ("last", 12, 3, None)]
)
def test_each_rule_takes_its_own_label(rule, step, label, stop):
    tokens = ["I", " see", " 3", " problems", " in", " it", ",", " so", ".", " ", "Score", ":", " 4", ".\n", "Done"]
    assert run(tokens, rule=rule) == (Located(step, label), stop)


@pytest.mark.parametrize(
    "text",
    [
        *("Score: 4", "score:4", "SCORE : 4.", "**Score:** 4", "**Score**: **4**", "Final score: 4\n", "Rating: 4"),
        *("The score is 4.", "My rating is: `4`", "Score (1-5): 4", "Score [1 to 5]: 4", "Score: (1-5) 4", "Score = 4"),
        *('{"score": 4, "why": 1}', "{'overall_score': '4'}", "<score>4</score>", "Score: <b>4</b>", "| Score | 4 |"),
        *("## Score\n\n4\n", "Score:\n\n- 4\n", r"Score: $\boxed{4}$", "Score: 4/5", "Score: **4** / 5"),
        *("Score: 4 out of 5", "Score: 4 (out of 5)", "Score: 4 - good", "Score: 4, 3 errors", "Score: 4. 5 is best"),
        *("Score: 4 or so", "Score: 4 together", "_Score_: _4_", "Score - 4", "Score: +4", "Score: 4</s>"),
        "score\uff1a4分",
    ],
)
def test_the_anchor_bears_markup_and_remarks(text):
    assert label_in(text) == "4"


@pytest.mark.parametrize(
    "echo",
    [
        *("Score: 1-5", "Score: [1-5]", "Score: 1 to 5", "Score: [1 to 5]", "Score: 1 - 5", "Score: 1\u20135"),
        *("Score: 1, 2, 3, 4 or 5", "Score: 1, 2 or 3", "Score: 1/2/3/4/5", "Score: 1|2|3", "Score: 1 2 3"),
        *("Score: **1** to **5**", "Score: 1 or 2", "Score: 1 to 10", "Score: on a scale of 1 to 5", "Score: N/A"),
        *("Score: X", "Score: <1-5>", "Score: -4", "Score: 3.5", "Score: 3,5", "Score: 40", "Score: 4%", "Score: 4th"),
        *("Score: 7/5", "Score: 4.5/5", "The score of 5 problems", "underscore: 5", "scores only: 5", "Score 5"),
        "Score: 1..5",
    ],
)
def test_what_only_looks_like_a_score_is_passed_over(echo):
    assert label_in(echo) is None
    assert label_in(f"{echo}\nI'd say Score: 2\n") == "2"


def test_the_score_is_settled_by_the_first_anchor_that_has_one():
    text = "Score: on a scale of 1 to 5, I'd give Score: 4\nScore: 2\n"
    found, stop = run(list(text))
    assert found == Located(text.index("4"), 3)
    assert stop == text.index("4") + 1


@pytest.mark.parametrize(
    ("tokens", "stop"),
    [
        (["Score", ":", " 4", "\n", "x"], 3),
        (["Score", ":", " 4", "</s>"], 3),
        (["Score", ":", " 4"], None),  # "40" and "4.5" were still possible
        (["Score", ":", " 4", ".", " It", " is"], 4),  # "4.5" was possible before the space
        (["Score", ":", " 4", ".", "5", "\n", "x"], None),
        (["Score", ":", " 4", "/", "5", "\n", "x"], 5),  # "4/5/6" was
        (["Score", ":", " 4", " t", "o", "gether", " with"], 6),  # "4 to 5" was
        (["Score", ":", " 4", " to", " 5", "\n", "Score", ":", " 3", "\n"], 9),
        (["Score", ":", " 4", ",", " because", " it"], 5),
    ],
)
def test_decoding_stops_as_soon_as_nothing_can_change_the_score(tokens, stop):
    assert run(tokens)[1] == stop


def test_a_repeated_score():
    tokens = ["Score", ":", " 4", "\n", "Score", ":", " 2", "\n"]
    assert run(tokens) == (Located(2, 3), 3)
    assert run(tokens, rule="first") == (Located(2, 3), 3)
    assert run(tokens, rule="last") == (Located(6, 1), None)


@pytest.mark.parametrize("rule", ["anchor", "first", "last"])
def test_no_score_is_none(rule):
    assert run(["It", " is", " good", ".", "</s>"], rule=rule) == (None, None)
    assert run([], rule=rule) == (None, None)
    assert label_in("Score: it is 4.5, not -3 nor 44, 5% or 10/10", rule=rule) is None


def test_without_an_anchor_there_is_no_score():
    assert run([" 4", "."]) == (None, None)
    assert run([" 4", ".", " I", " see"], rule="anchor:I see") == (None, None)


@pytest.mark.parametrize("rule", ["anchor", "first", "last"])
def test_ten_of_ten_is_one_token_or_none(rule):
    merged = ["Score", ":", " ", "10", "/", "10", "\n", "ok"]
    split = ["Score", ":", " ", "1", "0", "/", "1", "0", "\n", "ok"]
    assert run(merged, "1..10", rule)[0] == Located(3, 9)
    assert run(split, "1..10", rule)[0] is None
    assert run(merged, "1..5", rule) == run(split, "1..5", rule) == (None, None)
    assert run(split, "0..9", rule) == (None, None)


def test_a_score_without_a_reading_settles_the_matter():
    """Going on would read a number that the judge did not mean as the score."""
    tokens = ["Score", ":", " ", "1", "0", "\n", "Length", " score", ":", " 3", "\n"]
    assert run(tokens, "1..10") == (None, 5)
    assert run(["Score", ":", " 4.", " Good", "\n"]) == (None, 3)
    assert run(["Score", ":", "\n4", "\n"]) == (None, 3)


@pytest.mark.parametrize("rule", ["first", "last"])
@pytest.mark.parametrize("text", ["4/5", "4 out of 5", "**4** / 5.", "a 5-point scale: 4", "on 1-5, 4", "4, not 4.5"])
def test_what_a_score_is_out_of_is_no_score(rule, text):
    assert label_in(text, rule=rule) == "4"


@pytest.mark.parametrize("text", ["4.5", "3,5", "-4", "40", "4th", "x4", "4-5", "10/10", "5,000"])
@pytest.mark.parametrize("rule", ["first", "last"])
def test_a_label_is_a_whole_number(rule, text):
    assert label_in(text, rule=rule) is None
    assert label_in(f"{text} ", rule=rule) is None


def test_words():
    tokens = ["No", " one", " knows", ".", " Score", ":", " **", "Yes", "**", ",", " no", " issues", "."]
    assert run(tokens, "yes/no", case=True) == (Located(7, 1), 12)
    assert run(tokens, "yes/no", "first", case=True) == (Located(0, 0), 1)
    assert run(tokens, "yes/no", "last", case=True) == (Located(10, 0), None)
    assert run(tokens, "yes/no")[0] is None
    for echo in ("yes/no", "yes or no", "[yes | no]", "nothing", "no-one", "yesterday"):
        assert run(["Score", ":", " ", *echo, "\n"], "yes/no") == (None, None)


def test_letters_need_an_anchor():
    tokens = ["A", " good", " answer", ".", " Score", ":", " B", "\n"]
    assert run(tokens, "A..E") == (Located(6, 1), 7)
    assert run(tokens, "A..E", "first") == (Located(0, 0), 1)
    assert run(tokens, "A..E", "last") == (Located(6, 1), None)
    for echo in ("Score: A-E\n", "Score: A, B, C, D or E\n", "Score: A/B/C\n", "Score: Average\n", "Score: B+\n"):
        assert label_in(echo, "A..E") is None


def test_negative_labels_are_whole_too():
    scale = "-2..2"
    assert run(["Score", ":", " -1", "\n"], scale) == (Located(2, 1), 3)
    assert run(["Score", ":", " -", "1", "\n"], scale) == (None, 4)
    assert run(["Score", ":", " +", "1", "\n"], scale) == (Located(3, 3), 4)


@pytest.mark.parametrize("rule", ["anchor", "first", "last"])
def test_characters_of_several_tokens_shift_nothing(rule):
    split = [bytes([byte]) for byte in "é好🎉".encode()]
    found, _ = run([*split, "Score", ":", *split, " 4", "\n", *split], rule=rule)
    assert found == (None if rule == "anchor" else Located(2 * len(split) + 2, 3))
    # Between anchor and label only what is no letter may stand.
    star = [bytes([byte]) for byte in "⭐".encode()]
    assert run([*split, "Score", ":", *star, " 4", *star, "\n"], rule=rule)[0] == Located(len(split) + 5, 3)
    # Bytes that never make a character.
    assert run([b"\xff", "Score", ":", b"\xe2", b"\xff", "4", b"\xe2"], rule=rule)[0] == Located(5, 3)


def test_chinese_numbers_and_words_stand_without_spaces():
    assert run(["评分", ":", "4", "分", "。"], rule="anchor:评分") == (Located(2, 3), 4)
    assert run(["很", "好", "。", "好", "。"], "坏=0,好=1", "first") == (Located(3, 1), 4)


def test_the_prefill_may_hold_the_anchor_but_not_the_score():
    assert run([" 4", "\n"], prefill="Score:") == (Located(0, 3), 1)
    assert run([" 4", "\n"], rule="first", prefill="From 1 to 5:") == (Located(0, 3), 1)
    assert run(["4", "\n"], prefill="Score: 3") == (None, None)


@pytest.mark.parametrize(
    ("kind", "step"), [("digits", 4), ("merged", 3), ("sentencepiece", 4)], ids=["digits", "merged", "sentencepiece"]
)
def test_real_tokenizers(kind, step):
    tokenizer = tiny.tokenizer(kind)
    scale = probes.Scale.parse("1..5")
    spellings, decode = generated_spellings(tokenizer, scale), running_text(tokenizer)
    for before in ("", "I see 3 problems, é好🎉.\n"):
        ids = encode(tokenizer, before, special_tokens=False)
        lead = len(ids)
        ids += encode(tokenizer, "Score: 4", special_tokens=False)
        ids.append(tokenizer.eos_token_id)
        for rule in (ScoreRule("anchor"), ScoreRule("last")):
            finder = ScoreFinder(rule, scale, spellings, decode)
            stops = [finder.feed(token) for token in ids]
            assert stops == [False] * (len(ids) - 1) + [rule.kind == "anchor"]
            assert finder.result() == Located(lead + step, 3)
            assert tokenizer.decode([ids[lead + step]]).strip() == "4"


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_keep_the_text_whole(kind):
    tokenizer = tiny.tokenizer(kind)
    decode = running_text(tokenizer)
    ids = encode(tokenizer, "Rate it. Score: 10/10", special_tokens=False)
    assert "".join(decode([token]) for token in ids).lstrip() == "Rate it. Score: 10/10"
    # A space in front of the first token must survive: it may end a word of the prefill.
    assert decode(encode(tokenizer, " A", special_tokens=False)) == " A"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("scale", "case"), [("1..5", False), ("1..10", False), ("A..E", False), ("yes/no", True), ("yes/no", False)]
)
def test_spellings_are_all_the_tokens_that_read_as_a_label(kind, scale, case):
    """Against a scan of the vocabulary."""
    tokenizer = tiny.tokenizer(kind)
    parsed = probes.Scale.parse(scale, case=case)
    decode = running_text(tokenizer)
    wanted = {}
    for name, token in tokenizer.get_vocab().items():
        text = decode([token]).removeprefix(" ")
        for index, label in enumerate(parsed.labels):
            if text in {label, label.capitalize() if case else label} and not name.startswith("<0x"):
                wanted[token] = index
    assert generated_spellings(tokenizer, parsed) == wanted
    assert set(wanted.values()) == set(range(9 if scale == "1..10" else len(parsed.labels)))


def test_labels_of_several_words_are_refused():
    with pytest.raises(ScoreTokenError, match="'very good' cannot be told apart in generated text"):
        run(["Score", ":", " good"], "poor/good/very good")


def test_rules_survive_text_and_json():
    for text in ("anchor", "last", "first", "anchor:Verdict:", r"anchor:(?i)\banswer\s*="):
        rule = ScoreRule.parse(text)
        assert str(rule) == text
        assert ScoreRule.from_dict(rule.to_dict()) == ScoreRule.parse(str(rule)) == rule
    assert ScoreRule() == ScoreRule.parse(" anchor ") == ScoreRule("anchor", DEFAULT_ANCHOR)
    assert label_in("Verdict: 4\n", rule="anchor:Verdict:") == "4"
    assert label_in("Score: 3</think>...\nScore: 4\n", rule=r"anchor:</think>[\s\S]*Score:") == "4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lats", "unknown score rule 'lats': choose anchor, anchor:REGEX, last or first"),
        ("last:x", "unknown score rule 'last:x'"),
        ("", "unknown score rule ''"),
        ("anchor:(", r"the anchor '\(' is not a regular expression: missing \), unterminated"),
        ("anchor:", "the anchor '' matches empty text"),
        ("anchor:x*", r"the anchor 'x\*' matches empty text"),
    ],
)
def test_bad_rules_are_one_line(text, message):
    with pytest.raises(ProbesError, match=message) as caught:
        ScoreRule.parse(text)
    assert "\n" not in str(caught.value)


PIECES = [
    *("Score", " score", ":", " ", "4", " 4", "1", "0", "10", "5", "4.", "/", "-", " - ", ".", ",", "..", " to"),
    *(
        "\n",
        "**",
        "(",
        ")",
        "[",
        "]",
        "out of ",
        "yes",
        " no",
        "A",
        "x",
        "%",
        "+",
        "'",
        "</s>",
        "好",
        "is",
        "\u2013",
        "_",
    ),
    *(" or", "is", b"\xc3", b"\xa9", b"\xe5\xa5", b"\xbd", b"\xff", "\N{REPLACEMENT CHARACTER}"),
]


@given(
    tokens=st.lists(st.sampled_from(PIECES), max_size=25),
    more=st.lists(st.sampled_from(PIECES), max_size=10),
    scale=st.sampled_from(["1..5", "0..9", "1..10", "-2..2", "A..E", "yes/no"]),
    rule=st.sampled_from(["anchor", "first", "last"]),
    start=st.sampled_from([[], ["Score", ":", " 4"], [" score", " ", "is", "1"]]),
)
def test_stopping_early_never_changes_the_score(tokens, more, scale, rule, start):
    """``run`` itself checks that feeding token by token finds what the finished text holds."""
    whole = start + tokens + more
    found, stop = run(whole, scale, rule)
    for length in {len(start), len(start) + len(tokens), len(whole)}:
        cut, cut_stop = run(whole[:length], scale, rule)
        assert cut_stop == (stop if stop is not None and stop < length else None)
        if cut_stop is not None:
            assert cut == found
    if stop is not None:
        assert run(whole[: stop + 1], scale, rule) == (found, stop)
        assert found is None or found.step <= stop
    if found is not None:
        label = probes.Scale.parse(scale).labels[found.label]
        assert whole[found.step] in {label, " " + label}
