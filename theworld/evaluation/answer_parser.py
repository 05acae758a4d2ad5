"""Parses which choice a free-text answer commits to.

An answer may be a bare letter, a choice's text, or long reasoning that considers one choice and decides on another.
What is not clearly a commitment is not read: a wrong reading is worse than none. Parsing has three steps:

1. `_plain` removes formatting (Markdown, LaTeX, special tokens, full-width characters, thoughts in tags, complete or
   cut off) and idioms such as "no doubt", and replaces letters that only look like A, B, C by these.
2. `_marked` replaces every mention of a choice by a mark, strong (`⟦B⟧`) for its letter and weak (`⟨B⟩`) for its text.
3. `_commitment` decides by the words around the marks: a letter that is chosen, concluded or called correct, the last
   one if there are several; a table of verdicts (A: no. B: yes.); else the beginning of the answer; else the only
   choice mentioned, unless the answer was cut off before it came to one. A choice that is denied, conditional, or named
   together with another is not a commitment.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"

_THOUGHT = r"(?:think|thinking|reasoning|scratchpad)"
# a prompt may hold the opening tag, and an answer may be cut before the closing one
_THOUGHTS = re.compile(rf"\A.*</{_THOUGHT}>|<{_THOUGHT}>.*\Z", re.S | re.I)
_TAGGED = re.compile(r"<(answer|final_answer|choice)>(.*?)</\1>", re.S | re.I)
_SPECIAL = re.compile(r"</?(?:s|eos|bos|pad|start_of_turn|end_of_turn|answer|unk)>|<\|[^|<>]*\|>|\[/?INST\]", re.I)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mathit)\s*\{([^{}]*)\}")


# letters of other alphabets that look like ours; many are words as well, so those before a word of theirs are kept
_LOOKALIKES = str.maketrans("АВСЕНІЈΑΒΕΗΙ", "ABCEHIJABEHI")
_LOOKALIKE = re.compile(r"(?<!\w)[АВСЕНІЈΑΒΕΗΙ](?!\w)(?!\s+[\u0370-\u03ff\u0400-\u04ff])")
_ASIAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # kana, Chinese characters and Hangul, written without spaces
_ASIAN_MARKS = str.maketrans("。、【】「」『』〔〕", ".,()()()()")


def _any(words: str) -> str:
    """A pattern for one of several phrases, separated by |; spaces match any white space."""
    return "(?:" + "|".join(word.strip() for word in words.split("|")) + ")"


# nouns before the letter of a choice
_NOUN = _any(
    "options?|choices?|answers?|letters?|alternatives?|candidates?|points?|box(?:es)?|pictures?|images?"
    "|figures?|photos?|regions?|circles?|statements?|panels?|objects?"
)
# words after a bare "A" that is a letter and not an article
_VERB = _any(
    "is|was|has|are|appears?|seems?|looks|corresponds?|match(?:es)?|fits?|would|must be|should be|can be|cannot|can't"
    "|isn't|and|or|because|since|as|but|due|than|wins|lies|best|most|instead|over|then|only"
)
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
_MARK = re.compile(r"[⟦⟨]([A-J])[⟧⟩]")
_JOIN = (
    r"[\s\"']*(?:[,/&|]|or|and|and/or|as well as|along with|and also)[\s\"']*"
    rf"{_any(',|or|and|also|maybe|possibly|perhaps')}?\s*(?:the\s+)?(?:{_NOUN}\s+)?"
)
_NONE = re.compile(
    r"^[\s:,.\-–—\"']*(?:is\s+|that\s+|which is\s+)?"
    + _any("none|neither|not enough|cannot|can't|insufficient|unknown")
    + r"\b",
    re.I,
)

# before a mark: denies it
_DENIAL = re.compile(
    rf"""\b{_any(
        "not|n't|cannot|can't|isn't|doesn't|don't|won't|wouldn't|never|neither|nor|unable|impossible|difficult|hard"
        "|unlikely|incorrect|wrong|reject(?:ed|ing)?"
        "|eliminat(?:e|ed|es|ing)|rul(?:e|ed|es|ing) out|exclud(?:e|ed|es|ing)"
        "|discard(?:ed|ing)?|rather than|instead of|as opposed to|unlike|either|whether|compared (?:to|with)|than"
        "|except|without|nicht|keine?|ne|pas|non(?!-)|não|no es|не|нет|кроме"
    )}\b""",
    re.I,
)
# in the same clause as a mark: denies it
_ASIAN_DENIAL = re.compile("[不非没無无错錯誤误違违]|ない|なく|ません|아니|않|틀")
# after a mark, as its verdict
_VERDICT = re.compile(
    r"[⟦⟨]([A-J])[⟧⟩]\s*(?:[:=\-–—→]+|is|are)?\s*"
    rf"(?:(?P<right>{_any('yes|true|correct|right|✓|✔|✅')})|{_any('no|false|incorrect|wrong|✗|✘|❌')})(?!\w)(?!\s+\w)",
    re.I,
)
# after a mark: denies it
_DENIED_AFTER = re.compile(
    rf"^[\"'\s]*(?:{_NOUN}\s+)?(?:[\w']+\s+){{0,4}}?"
    rf"(?:{_any('is|are|was|were|does|do|did|can|could|would|will|should|seems?|appears?|looks?')}\s+)?"
    rf"(?:{_any('also|clearly|definitely|therefore|probably|likely|simply|certainly|obviously|even|quite|just')}\s+)*"
    + _any(
        "not|cannot|can't|isn't|aren't|wasn't|doesn't|don't|didn't|couldn't|wouldn't|won't|never|wrong|incorrect"
        "|unlikely|eliminated|excluded|ruled out|rejected|out of the question|false|less|too"
    )
    + r"\b",
    re.I,
)
# after a mark: it is not the answer
_WRONG = re.compile(
    r"^\W*(?:is|are|seems|would be)\s+(?:clearly |definitely |probably )?(?:(?:not|n't)\s+(?:the\s+|a\s+)?"
    + _any("correct|right|best|answer|true|one|choice|option|likely|possible|it")
    + "|"
    + _any("wrong|incorrect|false|unlikely|ruled out|eliminated")
    + r")\b",
    re.I,
)
# where a clause turns: a denial before it does not apply after it
_TURN = re.compile(
    rf"""\b{_any(
        "but|however|therefore|thus|hence|so|although|though|whereas|while|because|since|actually|instead,|still,"
        "|nevertheless,|yet|then|forced|had to|have to|must|which leaves|leaving|leaves"
    )}\b|[;:—–]|,\s+(?:i|it|the|my|we)\b""",
    re.I,
)
_CONDITION = re.compile(rf"^\W*{_any('if|assuming|suppose|supposing|in case|unless|when')}\b", re.I)
_FORCED = re.compile(r"\bif\s+(?:i\s+)?(?:am\s+|were\s+|was\s+)?(?:forced|had to|have to|must|pressed|needed)\b", re.I)
_REFUSAL = re.compile(
    rf"""\b{_any(
        "cannot|can't|can not|could not|couldn't|unable to|not possible|impossible|difficult to|hard to|not able to"
        "|insufficient|not enough|no way to|need more|without (?:more|further|additional|any|knowing|seeing)"
        "|please provide|not clear which|unclear|not sure|sorry|none of (?:the|these|them)|neither|decline"
        "|невозможно|не могу|неясно"
    )}\b|无法|無法|不能|不确定|不確定|かりません|できません|알 수 없""",
    re.I,
)

_IT_IS = rf"(?:it|this|that)(?:'s|\s+{_any('is|must be|should be|would be|has to be|will be')})\s+"
_FILLER = (
    rf"(?:{_any('definitely|clearly|likely|probably|therefore|thus|indeed|actually|simply|just|most|obviously')}\s+"
    rf"|{_any('certainly|also|still|then|now|be')}\s+)*"
)
_LEAD = (
    rf"(?:{_any('the|a|an|my|that|with|of')}\s+)*"
    rf"(?:{_any('correct|right|final|best|most|likely|probable|single|letter')}\s+)*(?:{_NOUN}\s*)?[:\s\"'#]*"
)
_THERE = rf"{_FILLER}[:\s]*{_LEAD}(?P<mark>[⟦⟨])"
_COMMITS = [
    re.compile(pattern, re.I)
    for pattern in (
        # the answer is B; the best choice would be: B; Answer: B; my selection => B
        rf"\b{_any('answers?|options?|choices?|selection|solution|response|conclusion|verdict|pick|guess|bet|vote')}\b"
        r"(?:[^.!?\n⟦⟨]{0,80}?)"
        rf"(?:\b{_any('is|are|was|be|becomes|remains|would be|should be|must be|lies with|equals')}\b|[:=]|->|=>|→)"
        rf"\s*{_THERE}",
        r"\banswer\b\W{0,4}(?P<mark>[⟦⟨])",
        # I choose B; I would go with B; settling on B; which leaves B
        r"\b"
        + _any(
            "choos(?:e|es|ing)|chosen?|select(?:s|ed|ing)?|pick(?:s|ed|ing)?|go(?:ing)? (?:with|for)|went with"
            "|opt(?:ed|ing)? for|settl(?:e|ed|es|ing) (?:on|for)|vote for|lean(?:ing)? (?:towards?|to)"
            "|stick(?:ing)? with|conclud(?:e|ed|es|ing)(?: that)?(?: (?:it|this|the answer) is)?|say"
            "|infer|guess|bet on|favou?rs?|points? to|left with|leaves"
        )
        + rf"\b\s*(?:that\s+)?(?:it(?:'s| is)\s+)?{_THERE}",
        # so B; therefore, B; wait, no, it's B
        r"\b"
        + _any(
            "so|therefore|thus|hence|overall|finally|in conclusion|in summary|to sum up|consequently|accordingly"
            "|ultimately|actually|rather|wait|no|correction|instead"
        )
        + rf"\b[,:\s]+(?:{_IT_IS})?{_THERE}",
        # it must be B
        rf"\b{_IT_IS}{_THERE}",
        # therefore the point that corresponds to it is B
        rf"\b{_any('therefore|thus|hence|so|overall|conclude|conclusion|based on|considering|given|corresponding')}\b"
        rf"[^.!?\n]{{0,250}}\b(?:is|be)\b(?: labell?ed)?(?: as)?[:\s]*{_THERE}",
        rf"\b(?:corresponds|most)\b[^.!?\n]{{0,250}}\b(?:is|be)\b(?: labell?ed)?(?: as)?[:\s]*{_THERE}",
    )
]
# B is correct; B is the best match; B fits best
_PRAISED = re.compile(
    r"^[\"'\s]*(?:[^.!?\n⟦⟨]{0,40}?\s)?"
    + _any("is|are|would be|must be|should be|seems|appears|remains|looks")
    + r"\s+(?:to be\s+)?"
    + rf"(?:{_any('indeed|clearly|definitely|likely|probably|obviously|therefore|thus|also|still|by far')}\s+)*"
    + r"(?:the |my |our |a |an )?(?:\w+ )?"
    + _any("correct|right|best|answer|most|closest|closer|true|choice|winner|better|darker|likeliest|one")
    + r"\b|^[\"'\s]*(?:[^.!?\n⟦⟨]{0,30}?\s)?"
    + _any("fits?|match(?:es)?|corresponds?|works|aligns|represents?|completes?|follows")
    + r"\b[^.!?\n]{0,30}?\b"
    + _any("best|most|perfectly|exactly|better|closest")
    + r"\b|^[\"'\s]*(?:[^.!?\n⟦⟨]{0,30}?\s)?(?:best|most closely|better|more accurately|most accurately)\s+\w+",
    re.I,
)


# where "no" answers nothing
_SURELY = re.compile(
    rf"\bno\s+{_any('doubt|question|problem|wonder|matter')}\b|\bwithout\s+(?:a|any\s+)?\s*{_any('doubt|question')}\b",
    re.I,
)
_UNCLEAR = re.compile(rf"\bno\s+{_any('idea|clue|information|way (?:of|to)|one (?:knows|can)')}\b", re.I)
# in a sentence that was cut off: it may turn from what it commits to, or from what was said before it
_MAY_TURN = re.compile(rf"\b{_any('but|however|although|though|while|whereas|yet|wait|unless|except')}\b", re.I)
_RECONSIDERS = re.compile(rf"^\W*(?:but\s+)?{_any('wait|hmm|actually|let me|on second thought|however')}\b", re.I)


def read_choice(text: str, choices: Sequence[str]) -> str | None:
    """The letter that an answer commits to.

    Args:
        text: what a model said.
        choices: the words of choice A, B, …; empty strings where they are not known.

    Returns:
        A capital letter, or None where the answer commits to no choice, to several, or to one that is not among them.
    """
    plain = _plain(text)
    if _contradicts_itself(plain, choices):
        return None
    letter = _whole(plain, choices) or _commitment(_marked(plain, choices), choices)
    return letter if letter in tuple(LETTERS[: len(choices)]) else None


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text)
    text = text.translate(_ASIAN_MARKS)
    text = _LOOKALIKE.sub(lambda found: found[0].translate(_LOOKALIKES), text)
    text = _THOUGHTS.sub(" ", text)
    text = _TAGGED.sub(lambda found: f"\nThe answer is: {found[2]}\n", text)
    text = _SPECIAL.sub(" ", text)
    text = _LATEX.sub(r"\1", text)
    text = _LATEX.sub(r"\1", _BOXED.sub(lambda found: f" The answer is: ({found[1].strip(' ().')}). ", text))
    text = re.sub(r"[*`$#]+|(?<!\w)_+|_+(?!\w)|\\[\[\]()]", "", text)
    text = text.replace("’", "'").replace("“", '"').replace("”", '"')
    text = _UNCLEAR.sub("unclear", _SURELY.sub("surely", text))
    return re.sub(r"[ \t]+", " ", text).strip()


def _words(text: str) -> str:
    """Words only, in lower case, to compare two ways of writing a choice."""
    return " ".join(re.findall(r"[\w']+", text.lower()))


def _whole(text: str, choices: Sequence[str]) -> str | None:
    """The choice of an answer that consists only of its letter or its text."""
    bare = re.fullmatch(
        rf"[\s\"'(\[{{]*(?:(?:the\s+)?{_NOUN}\s*[:\s]\s*)?[\"'(\[{{]*([A-Za-z])[\s\"')\]}}.,:;!]*", text, re.I
    )
    if bare:
        return bare[1].upper()
    said = _words(text)
    same = [LETTERS[place] for place, words in enumerate(choices) if said and _words(words) == said]
    return same[0] if len(same) == 1 else None


def _contradicts_itself(text: str, choices: Sequence[str]) -> bool:
    """Whether an answer is the letter of one choice and the text of another, and nothing else."""
    found = re.fullmatch(r"\W*([A-J])(?!\w)\W*(.*)", text, re.DOTALL)
    said = _words(found[2]) if found else ""
    named = [LETTERS[place] for place, words in enumerate(choices) if said and _words(words) == said]
    return found is not None and bool(named) and found[1] not in named


def _marked(text: str, choices: Sequence[str]) -> str:
    """`text` with ⟦B⟧ for each mention of a letter and ⟨B⟩ for each mention of a choice by its text."""
    by_length = sorted(
        ((words.strip().rstrip("."), LETTERS[place]) for place, words in enumerate(choices)),
        key=lambda pair: -len(pair[0]),
    )
    known = [words.lower() for words, _ in by_length]
    for words, letter in by_length:
        # "B" as the text of choice A would be read as the letter; two choices with the same text are ambiguous
        if words and known.count(words.lower()) == 1 and not re.fullmatch(r"[A-Za-z]", words):
            stem = re.escape(re.sub(r"^(?:the|a|an)\s+", "", words, flags=re.I))
            pattern = rf"(?<![\w⟨⟦.])(?<!\d,)(?:(?:the|a|an)\s+)?{stem}(?![\w⟩⟧])(?!\.\d)"
            text = re.sub(pattern, f"⟨{letter}⟩", text, flags=re.I)
    text = re.sub(r"[(\[{]\s*\"?([A-Ja-j])\"?\s*[)\]}]", lambda found: f"⟦{found[1].upper()}⟧", text)
    text = re.sub(r"(^|\n)(\W{0,3})([A-J])(?=\s*[).:\-–](?:\s|$))[).:]?", r"\1\2⟦\3⟧", text)
    text = re.sub(rf"(?<=[{_ASIAN}])(\s?)([A-J])(?![A-Za-z0-9'⟧⟩])", r"\1⟦\2⟧", text)
    text = re.sub(rf"(?<![A-Za-z0-9'⟦⟨])([A-J])(?=\s?[{_ASIAN}])", r"⟦\1⟧", text)
    # "option b", "Point A", "Box B": a capital after any of the nouns, a small letter after the first few
    text = re.sub(rf"\b((?i:{_NOUN})\s+\"?)([A-J])(?![\w'])", r"\1⟦\2⟧", text)
    text = re.sub(
        r"\b((?i:option|choice|answer is|answer:|letter)\s+\"?)([a-j])(?=[\s.,;:!?\")]|$)(?!\s+[a-z])",
        lambda found: f"{found[1]}⟦{found[2].upper()}⟧",
        text,
    )
    text = re.sub(
        r"(?<![\w'⟦⟨.])(?<!Mr\. )(?<!Dr\. )(?<!Mrs\. )(?<!Ms\. )\"?([B-HJ])\"?(?![\w'⟧⟩]|\.\w)", r"⟦\1⟧", text
    )
    text = re.sub(rf"(?<![\w'⟦⟨.])\"?A\"?(?=\s*(?:[.,;:!?)\n]|$)|\s+{_VERB}\b|\"|\s*[⟦⟨])(?!\.\w)", "⟦A⟧", text)
    # "(A) the second image" is one mention, and its letter counts, if there is such a choice
    last = LETTERS[max(len(choices) - 1, 0)]
    text = re.sub(rf"(⟨[A-J]⟩)\s*⟦[^A-{last}]⟧", r"\1", text)
    text = re.sub(r"⟨[A-J]⟩\s*(⟦[A-J]⟧)(?!\s*⟨)", r"\1", text)
    text = re.sub(r"(⟦[A-J]⟧)[\s:.,\-–\"']*⟨[A-J]⟩", r"\1", text)
    # "the answer is:" and its letter in the next paragraph are one sentence
    return re.sub(
        r"([:=]|\b(?:is|be|select|choose))\s*\n+\s*(?=\W?[⟦⟨]([A-J])[^\n]*(?:$|\n+(?!\W*[⟦⟨](?!\2))))", r"\1 ", text
    )


def _commitment(text: str, choices: Sequence[str]) -> str | None:
    strong = re.sub(r"⟨([A-J])⟩", lambda found: choices[LETTERS.index(found[1])], text)
    attempts = (
        lambda: _verdicts(strong, choices),
        lambda: _last_commit(strong, choices),
        lambda: _beginning(text),
        lambda: _last_commit(text, choices),
    )
    decided = next((found for attempt in attempts if (found := attempt()) is not None), None)
    if decided is not None:
        return decided or None
    if _REFUSAL.search(text) or _is_cut(text):
        return None
    if "⟦" not in text:  # the choice by its text, then the reason
        first = {mark[1] for mark in _MARK.finditer(_SENTENCE.split(text)[0])}
        if len(first) == 1 and not _CONDITION.search(text):
            mark = _MARK.search(text)
            assert mark is not None
            return None if _is_denied(text, mark.start(), mark.end()) else first.pop()
    for marks in (strong, text):
        named = {mark[1] for mark in _MARK.finditer(marks) if not _is_denied(marks, mark.start(), mark.end())}
        if named:
            return named.pop() if len(named) == 1 else None
    return None


def _is_cut(text: str) -> bool:
    """Whether an answer in sentences was cut off in the last one."""
    sentences = [sentence for sentence in _SENTENCE.split(text) if sentence.strip()]
    return len(sentences) > 1 and bool(re.search(r"[\w,⟧⟩]\s*$", text)) and len(sentences[-1].split()) > 2


def _verdicts(text: str, choices: Sequence[str]) -> str | None:
    """The letter that a table of verdicts calls right, "" if it is none or several, None if there is no table.

    What is concluded after the table, or was said before one that only rules out, counts.
    """
    found = list(_VERDICT.finditer(text))
    if len({verdict[1] for verdict in found}) < 2 or {"yes", "no"} & {choice.strip().lower() for choice in choices}:
        return None
    concluded = _last_commit(text[found[-1].end() :], choices)
    right = {verdict[1] for verdict in found if verdict["right"]}
    if concluded is None and not right:
        concluded = _last_commit(text[: found[0].start()], choices)
    if concluded is not None:
        return concluded
    return right.pop() if len(right) == 1 else ""


def _last_commit(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the last commitment, "" if it is to several or no choices, None if there is no commitment."""
    verdict = None
    own, ending = False, ""  # whether the last sentence commits, and this sentence
    for sentence in filter(str.strip, _SENTENCE.split(text)):
        own, ending = False, sentence
        if _CONDITION.search(sentence) and not _FORCED.search(sentence):
            continue
        positions = {match.start("mark") for pattern in _COMMITS for match in pattern.finditer(sentence)}
        positions |= {mark.start() for mark in _MARK.finditer(sentence) if _PRAISED.search(sentence[mark.end() :])}
        letters = [_committed(sentence, position, choices) for position in sorted(positions)]
        own = any(letter != "-" for letter in letters)
        verdict = next((letter for letter in reversed(letters) if letter != "-"), verdict)
    if (
        verdict
        and _is_cut(text)
        and (_MAY_TURN.search(_MARK.split(ending)[-1]) if own else _RECONSIDERS.search(ending))
    ):
        return ""
    if verdict is None:
        lines = [line for line in text.split("\n") if line.strip()]
        last = re.match(r"\W*[⟦⟨]([A-J])[⟧⟩]", lines[-1]) if len(lines) > 1 else None
        if last and not re.match(r"\W*[⟦⟨]", lines[-2]):
            letter = _committed(lines[-1], last.start(1) - 1, choices)
            verdict = None if letter == "-" else letter
    return verdict


def _committed(sentence: str, position: int, choices: Sequence[str]) -> str:
    """The letter of a commitment at `position`, "" for several or none of the choices, "-" if it is denied."""
    mark = _MARK.match(sentence, position)
    assert mark is not None
    if _is_denied(sentence, position, mark.end()):
        return "-"
    letter, rest = mark[1], sentence[mark.end() :]
    others = re.match(rf"{_JOIN}[⟦⟨]([A-J])", rest, re.I)
    before = re.search(rf"[⟦⟨]([A-J])[⟧⟩]{_JOIN}$", sentence[:position], re.I)
    if (others and others[1] != letter) or (before and before[1] != letter):
        return ""
    text = choices[LETTERS.index(letter)] if LETTERS.index(letter) < len(choices) else ""
    if _NONE.search(rest) and not _NONE.search(text):
        return ""
    return letter


def _is_denied(text: str, start: int, end: int) -> bool:
    """Whether the clause of a mark denies it."""
    clause = _SENTENCE.split(text[:start])[-1]
    turns = list(_TURN.finditer(clause))
    clause = clause[turns[-1].end() :] if turns else clause
    if _is_denied_in_asian(text, start, end):
        return True
    return bool(_DENIAL.search(clause)) or bool(_DENIED_AFTER.search(_SENTENCE.split(text[end:])[0]))


def _is_denied_in_asian(text: str, start: int, end: int) -> bool:
    """Whether the clause of a mark denies it in Chinese, Japanese or Korean."""
    before, after = re.split(r"[,.;:!?\n]", text[:start])[-1], re.split(r"[,.;:!?\n]", text[end:])[0]
    return bool(_ASIAN_DENIAL.search(before + after))


def _beginning(text: str) -> str | None:
    """The letter that an answer begins with, "" for a list or a pair, None if it does not begin with a letter."""
    first = re.match(r"\W*?[⟦⟨]([A-J])[⟧⟩]", text)
    if first is None:
        return None
    rest = text[first.end() :]
    if re.match(rf"{_JOIN}[⟦⟨](?!{first[1]})", rest, re.I) or _NONE.search(rest):
        return ""
    if {mark[1] for mark in _MARK.finditer(rest)} - {first[1]} and not re.search(r"\w", _MARK.sub("", rest)):
        return ""  # several choices and nothing else
    lines = {mark[1] for mark in re.finditer(r"(?:^|\n)\W*⟦([A-J])⟧", text)}
    # "A: it is red. B: it"
    lines |= {mark[1] for mark in re.finditer(r"[.!?;,]\s+⟦([A-J])⟧\s*:", rest) if mark[1] > first[1]}
    lines |= {first[1]} if lines else set()
    # "(A) yes (B) no": the next letter follows, and no word between them contrasts the two
    following = re.match(r"([^.!?\n⟦⟨]{0,80})⟦([A-J])⟧", rest)
    inline = (
        following is not None
        and ord(following[2]) == ord(first[1]) + 1
        and not re.search(r"\b(?:than|not|whereas|while|unlike|and|but)\b", following[1])
    )
    if len(lines) > 1 or (inline and first.group().endswith("⟧")):
        return ""
    return None if _WRONG.match(rest) or _is_denied_in_asian(text, first.end() - 3, first.end()) else first[1]
