"""What the digest knows about text: the prose of Markdown, reStructuredText and plain files, and its gist.

Nothing here knows of Weft; these are ordinary functions.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

WORD = re.compile(r"[^\W\d_]\w*(?:[-'\u2019]\w+)*")


@dataclass
class Document:
    """The prose of a text: without front matter, code, tables and markup."""

    title: str = ""
    headings: list[str] = field(default_factory=list)
    paragraphs: list[list[str]] = field(default_factory=list)  # of sentences
    links: int = 0
    words: int = 0  # those of tables too, but not those of code

    @property
    def sentences(self) -> list[str]:
        return [sentence for paragraph in self.paragraphs for sentence in paragraph]


# Reading.

_FRONT_MATTER = re.compile(r"\A(---|\+\+\+)\n(.*?)\n\1[ \t]*\n", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title\s*[:=]\s*[\"']?(.+?)[\"']?\s*$", re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FENCE = re.compile(r"`{3,}|~{3,}")
_RULE = re.compile(r"([=\-~^\"'#*+`_.:])\1{2,}$")
_MARKED_HEADING = re.compile(r"#{1,6}\s+(.+?)[\s#]*$")
_LOOKS_MARKED = re.compile(r"^(?:#{1,4} \w[^\n]*\n\n|```)", re.MULTILINE)
_LIST_ITEM = re.compile(r"(?:[-*+•>]|\d{1,3}[.)]|\([a-z\d]\)|:[\w ]+:)\s+")
_DIRECTIVE = re.compile(r"\.\.(?:\s|$)")
_REMARK = re.compile(r"\.\. (?:note|warning|tip|important|seealso|version\w+|deprecated)::")


def parse(text: str, name: str) -> Document:
    """The prose of a text; its name says what it is written in."""
    document = Document()
    text = _COMMENT.sub("", text.replace("\r\n", "\n").replace("\f", "\n"))
    if front := _FRONT_MATTER.match(text):
        title = _FRONT_TITLE.search(front[2])
        document.title = title[1] if title and title[1] != "null" else ""
        text = text[front.end() :]
    is_markdown = name.endswith(".md") or (not name.endswith(".rst") and bool(_LOOKS_MARKED.search(text)))
    for kind, raw in _blocks(text, is_markdown=is_markdown):
        document.links += len(_LINK.findall(raw))
        content = _plain(raw)
        document.words += len(WORD.findall(content))
        if kind == "table":
            continue
        if kind == "heading":
            document.headings.append(content.replace("`", ""))
        elif sentences := list(_sentences(content)):
            document.paragraphs.append(sentences)
    document.title = document.title or next(iter(document.headings), name)
    return document


def _blocks(text: str, *, is_markdown: bool) -> Iterator[tuple[str, str]]:
    """Headings, paragraphs and list items, in their order; code, tables and directives are left out."""
    lines: list[str] = []  # of the paragraph that is being read
    fence = ""  # what ends the code block that we are in
    skipping = -1  # leave out what is indented more than this
    in_list = False
    for line in [*text.expandtabs(4).split("\n"), ""]:
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if fence:
            fence = "" if stripped.startswith(fence) else fence
            continue
        if skipping >= 0 and (not stripped or indent > skipping):
            continue
        skipping = -1
        if _RULE.match(stripped) and len(lines) == 1 and len(lines[0]) <= 100:  # underlined
            yield "heading", lines.pop()
            continue
        marked = _MARKED_HEADING.match(stripped) if is_markdown else None
        item = _LIST_ITEM.match(stripped)
        opens_fence = _FENCE.match(stripped)
        directive = _DIRECTIVE.match(stripped)
        row = stripped.startswith("|")
        ends = row or opens_fence or marked or item or not any(map(str.isalnum, stripped))
        if (ends or directive) and lines:
            yield "paragraph", " ".join(lines)
            lines = []
        in_list = bool(item) or (in_list and (indent > 0 or not stripped))
        if opens_fence:
            fence = opens_fence[0]
        elif marked:
            yield "heading", marked[1]
        elif directive:
            skipping = -1 if _REMARK.match(stripped) else indent
        elif row:
            yield "table", stripped
        elif item:
            lines = [stripped[item.end() :]]
        elif not ends and not (is_markdown and indent >= 4 and not lines and not in_list):
            lines.append(stripped)
            if stripped.endswith("::"):  # what follows is a literal block
                yield "paragraph", " ".join(lines)[:-1]
                lines, skipping = [], indent


_LINK = re.compile(r"(?<!!)\[[^\[\]]+\](?:\([^()\s]+|\[[^\[\]]*\])|https?://[^\s<>)`]+")
_MARKUP = [
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),  # images
    (re.compile(r"^\[[^\]]+\]:.*"), ""),  # targets of links
    (re.compile(r"\[([^\[\]]*)\](?:\([^()\s]*(?:\s[^()]*)?\)|\[[^\[\]]*\])"), r"\1"),  # links
    (re.compile(r":[\w:+-]+:(?=`)"), ""),  # roles
    (re.compile(r"``([^`]+)``_{0,2}"), r"`\1`"),
    (re.compile(r"`([^`<]+?)\s*<[^<>`]+>`_{1,2}"), r"\1"),  # links of .rst
    (re.compile(r"`([^`]+)`_{1,2}(?!\w)"), r"\1"),
    (re.compile(r"(?<!\w)(\*{1,3})(?=\S)([^*]+?)(?<=\S)\1(?!\w)"), r"\2"),  # emphasis
    (re.compile(r"</?[a-zA-Z][^<>`]*>"), ""),  # tags
    (re.compile(r"\s+"), " "),
]


def _plain(text: str) -> str:
    for what, instead in _MARKUP:
        text = what.sub(instead, text)
    return text.strip()


_SENTENCE_END = re.compile(r"""[.!?…]["'”’)\]*`]*\s+(?=["'“‘(\[`]*[^\W_a-zß-ÿ]|`)|[。！？]""")  # noqa: RUF001 - as they are written
_ABBREVIATION = re.compile(
    r"\b(?:e\.g|i\.e|vs|cf|ca|approx|fig|vol|pp?|mr|mrs|ms|dr|prof|st|jr|[a-z])\.\s+$", re.IGNORECASE
)


def _sentences(paragraph: str) -> Iterator[str]:
    start = 0
    for end in _SENTENCE_END.finditer(paragraph):
        if _ABBREVIATION.search(paragraph, start, end.end()):
            continue
        yield paragraph[start : end.end()].strip()
        start = end.end()
    if WORD.search(rest := paragraph[start:].strip()):
        yield rest


# Judging.


def terms(texts: Iterable[str]) -> Iterator[str]:
    """The words that carry meaning, one by one, and the pairs of them that stand together."""
    for text in texts:
        before, end = "", -1
        for match in WORD.finditer(text):
            word = match[0].lower().removesuffix("'s").removesuffix("\u2019s")
            if len(word) < 3 or word in _COMMON:
                continue
            yield word
            if before and text[end : match.start()] == " ":
                yield f"{before} {word}"
            before, end = word, match.end()


def keywords(counts: Mapping[str, int], rarity: Mapping[str, float]) -> dict[str, float]:
    """Eight terms that a document uses often and others do not, with their weights, the heaviest first."""
    rare_pairs = {term for term, count in counts.items() if " " in term and count < 3}
    weights = {
        term: (1 + math.log(counts[term])) * rarity[term] * (0.5 if counts[term] == 1 else 1)
        for term in counts.keys() - rare_pairs
    }
    return _distinct(weights, limit=8)


def themes(documents: Sequence[Mapping[str, int]], rarity: Mapping[str, float]) -> dict[str, float]:
    """Twelve terms that several documents share, with their weights, the heaviest first."""
    weights: dict[str, float] = defaultdict(float)
    for counts in documents:
        for term, count in counts.items():
            if rarity[term] < math.log(1 + len(documents)) or len(documents) == 1:  # it is not alone with it
                weights[term] += (1 + math.log(count)) * rarity[term]
    return _distinct(weights, limit=12)


def _distinct(weights: Mapping[str, float], *, limit: int) -> dict[str, float]:
    """The heaviest terms, but only one of those that say the same: limit, limits, rate limit."""
    chosen: dict[str, float] = {}
    for term in sorted(weights, key=lambda term: (-weights[term], term)):
        words = set(map(_stem, term.split()))
        if all(words.isdisjoint(map(_stem, other.split())) for other in chosen):
            chosen[term] = weights[term]
            if len(chosen) == limit:
                break
    return chosen


def _stem(term: str) -> str:
    return re.sub(r"(?:ing|ed|es|s)$", "", term)


def telling_sentences(document: Document, rarity: Mapping[str, float]) -> list[str]:
    """Three to five sentences, in their order, that have the most of what the document is about."""
    counts = Counter(terms([*document.sentences, *document.headings, document.title]))
    weight = {term: math.log(1 + count) * rarity.get(term, 1.0) for term, count in counts.items()}
    scores: dict[int, float] = {}
    said: dict[int, set[str]] = {}
    position = 0
    for at, paragraph in enumerate(document.paragraphs):
        for nth, sentence in enumerate(paragraph):
            position += 1
            if not _is_prose(sentence):
                continue
            said[position] = set(terms([sentence]))
            early = 1.6 if at == 0 else 1.3 if at < 4 else 1.0
            leads = 1.2 if nth == 0 else 1.0
            density = sum(map(weight.__getitem__, said[position])) / (8 + len(said[position]))
            scores[position] = early * leads * density
    wanted = min(5, 3 + len(document.sentences) // 60)
    chosen: list[int] = []
    for number in sorted(scores, key=lambda number: -scores[number]):
        if all(_overlap(said[number], said[other]) < 0.5 for other in chosen):
            chosen.append(number)
            if len(chosen) == wanted:
                break
    sentences = document.sentences
    return [sentences[number - 1] for number in sorted(chosen)]


def outline(headings: Sequence[str]) -> str:
    """What can be said of a document that has no running text."""
    shown = [heading for heading in headings[1:11] if heading]
    return f"No running text. Sections: {', '.join(shown)}." if shown else "No running text."


def _is_prose(sentence: str) -> bool:
    without_code = re.sub(r"`[^`]*`", "", sentence)
    letters = sum(character.isalpha() or character == " " for character in without_code)
    return (
        5 <= len(WORD.findall(sentence)) <= 40
        and letters > 0.65 * len(sentence)
        and sentence.rstrip("\"'\u201d\u2019)`*")[-1:] in {".", "!", "。"}
        and not sentence[0].islower()
    )


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / (min(len(one), len(other)) or 1)


_COMMON = frozenset(
    """
    able about above across after again against ago all almost along already also although always among and
    another any anyone anything are aren't around ask away back became because been before began begin
    behind being below best better between both but call called came can can't cannot case cases certain
    come comes could couldn't did didn't different does doesn't doing don't done down during each easily
    either else end enough especially etc even ever every everything example few find first following for
    found four from further gave get gets getting give given gives goes going gone got had has hasn't have
    haven't having her here hers him his how however i'm i've if including instead into isn't it's its
    itself just keep kept know known last later least less let let's like likely little long look lot made
    mainly make makes making many may maybe mean means might more most mostly much must myself near need
    needed needs neither never new next non none nor not note nothing now off often old once one ones only
    onto other others otherwise our out over own part particular per perhaps please possible probably
    provide put quite rather really said same say says see seem seems seen set several shall she should
    shouldn't since some someone something sometimes soon still such sure take taken takes tell than that
    that's the their them themselves then there there's therefore these they they're thing things think this
    those though three through thus till together too took toward try two under unless until upon use used
    useful uses using usually various very via want wants was wasn't way ways we're well went were what
    whatever when where whether which while who whole whom whose why will with within without won't work
    would wouldn't yes yet you you'll you're your yours yourself
    """.split()  # noqa: SIM905 - a list of 270 quoted words would be no easier to read
)
