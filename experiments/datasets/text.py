"""Texts as tokens: words or characters of one text as a stream, and reviews as samples.

ptb           words of the Wall Street Journal in Mikolov's split: lower case, 10,000 types, an end token per line
kjv           the King James Bible: words in lower case and punctuation, the 9,998 most frequent types of the first nine
              tenths, an end token per verse; nine tenths for training, a twentieth each for validation and test
shakespeare   characters, unchanged; the same split
imdb          reviews: words in lower case and the marks ! and ?, the 19,998 most frequent types of the training set;
              the last 400 tokens of each; a tenth of the training reviews for validation
"""

import collections
import io
import json
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from experiments.datasets.published import DataSet, Found, Published, find
from mgu_jax.training.data import Data, Stream

END, UNKNOWN = "<eos>", "<unk>"
_NAME = "name it with --data-dir or MGU_JAX_DATA"


def _ptb_file(part: str, size: int, digest: str) -> Published:
    url = "http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz"
    return Published(f"ptb.{part}.txt", size, digest, ("ptb.zip", "simple-examples.tgz"), url, "simple-examples.tgz")


PTB = (
    _ptb_file("train", 5_101_618, "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
    _ptb_file("valid", 399_782, "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
    _ptb_file("test", 449_945, "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
)
HOW_PTB = (
    "get simple-examples.tgz from http://www.fit.vutbr.cz/~imikolov/rnnlm/ or a ptb.zip with ptb.train.txt, "
    f"ptb.valid.txt and ptb.test.txt in it into a folder and {_NAME}, or give --download"
)
KJV = (
    Published(
        "kjv.txt",
        4_404_412,
        "cd45f0c9cedab8e4439bd6486c8952c77cc8b0ecc5d1f6ae3513f2039f47229d",
        ("kjv.txt.gz",),
        printed_by=("bible", "-f", "gen1:1-rev22:21"),
    ),
)
HOW_KJV = (
    "install Debian's bible-kjv, or write what its command `bible -f gen1:1-rev22:21` prints to kjv.txt in a folder "
    f"and {_NAME}"
)
SHAKESPEARE = (
    Published(
        "tinyshakespeare.txt",
        1_115_394,
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ("tinyshakespeare.txt.gz",),
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ),
)
HOW_SHAKESPEARE = (
    "get https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt as "
    f"tinyshakespeare.txt into a folder and {_NAME}, or give --download"
)
_ACL_IMDB = Published(
    "aclImdb_v1.tar.gz",
    84_125_825,
    "7c2ac02c03563afcf9b574c7e56c153a",
    url="https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
)
IMDB = (
    Published(
        "imdb.jsonl",
        69_000_036,
        "5b45b40af0e17f0ff7d6ba3f453d50290894c9cce68686d7b99f7dd9e1035479",
        ("imdb.jsonl.xz",),
        otherwise=_ACL_IMDB,
    ),
)
HOW_IMDB = (
    f"get aclImdb_v1.tar.gz from https://ai.stanford.edu/~amaas/data/sentiment/ into a folder and {_NAME}, or give "
    "--download"
)


def _stream(tokens: np.ndarray) -> Stream:
    """A stream in which the target of every token is the next one."""
    return Stream(tokens[:-1], tokens[1:])


def _types(tokens: Iterable[str], most: int) -> list[str]:
    """The most frequent types; equally frequent ones in alphabetical order."""
    counts = collections.Counter(tokens)
    return sorted(counts, key=lambda token: (-counts[token], token))[:most]


def _numbers(tokens: list[str], symbols: tuple[str, ...]) -> np.ndarray:
    number = {symbol: i for i, symbol in enumerate(symbols)}
    unknown = number.get(UNKNOWN, -1)
    return np.fromiter((number.get(token, unknown) for token in tokens), np.int32, len(tokens))


def _cut(tokens: list[str], symbols: tuple[str, ...], sources: dict[str, str], validate: bool = True) -> DataSet:
    """Nine tenths for training, the next twentieth for validation, the last for the test; or both for the test."""
    numbers = _numbers(tokens, symbols)
    if not validate:
        train, test = np.split(numbers, [len(numbers) * 18 // 20])
        return DataSet(_stream(train), _stream(test), sources, None, symbols)
    train, valid, test = np.split(numbers, [len(numbers) * 18 // 20, len(numbers) * 19 // 20])
    return DataSet(_stream(train), _stream(test), sources, _stream(valid), symbols)


def ptb(data_dir: Path | None, download: bool = False) -> DataSet:
    """Penn Treebank, 929,589 + 73,760 + 82,430 words, as streams. Raises BadRequest as ``find`` does."""
    parts = [find(file, HOW_PTB, data_dir, download).content.decode() for file in PTB]
    tokens = [part.replace("\n", f" {END} ").split() for part in parts]
    symbols = tuple(_types(tokens[0], 10_000))
    train, valid, test = (_stream(_numbers(part, symbols)) for part in tokens)
    return DataSet(train, test, {file.name: file.digest for file in PTB}, valid, symbols)


def verses(content: str) -> list[str]:
    """The words and punctuation of lines, without the place of the verse at their start; an end token after each."""
    lines = [line.partition(" ")[2].lower() for line in content.splitlines()]
    return [token for line in lines for token in (*re.findall(r"[a-z]+(?:['-][a-z]+)*|[^\sa-z]", line), END)]


def kjv(data_dir: Path | None, download: bool = False) -> DataSet:
    """The King James Bible as streams of words. Raises BadRequest as ``find`` does."""
    tokens = verses(find(KJV[0], HOW_KJV, data_dir, download).content.decode())
    symbols = (UNKNOWN, *_types(tokens[: len(tokens) * 18 // 20], 9_999))
    return _cut(tokens, symbols, {KJV[0].name: KJV[0].digest})


def shakespeare(data_dir: Path | None, download: bool = False, validate: bool = True) -> DataSet:
    """Tiny Shakespeare as streams of its 65 characters: nine tenths for training, and a twentieth each for validation
    and test, or without ``validate`` a tenth for the test. Raises BadRequest as ``find`` does."""
    content = find(SHAKESPEARE[0], HOW_SHAKESPEARE, data_dir, download).content.decode()
    symbols = tuple(sorted(set(content)))
    return _cut(list(content), symbols, {SHAKESPEARE[0].name: SHAKESPEARE[0].digest}, validate)


def words(review: str) -> list[str]:
    """The words of a review in lower case, with their apostrophes, and the marks ! and ?."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)*|[!?]", review.lower().replace("<br />", " "))


def _reviews(found: Found) -> list[tuple[str, int, int, str]]:
    """(part, number, 1 if positive, text) of every review, sorted, so that positive and negative ones alternate."""
    if found.file is not _ACL_IMDB:
        rows = map(json.loads, found.content.splitlines())
        return sorted((row["split"], row["id"], row["label"], row["text"]) for row in rows)
    reviews = []
    with tarfile.open(fileobj=io.BytesIO(found.content)) as archive:
        for member in archive:  # aclImdb/train/pos/0_9.txt
            place = re.fullmatch(r"aclImdb/(train|test)/(neg|pos)/(\d+)_\d+\.txt", member.name)
            if place and (file := archive.extractfile(member)):
                reviews.append((place[1], int(place[3]), int(place[2] == "pos"), file.read().decode()))
    return sorted(reviews)


def imdb(data_dir: Path | None, download: bool = False, longest: int = 400, types: int = 20_000) -> DataSet:
    """IMDB's reviews, 22,500 + 2,500 + 25,000: xs [N, longest] tokens, targets [N] 1 if positive, lengths [N].

    Token 0 is padding, 1 an unknown word. The validation reviews are the last tenth by number, half of them positive.
    Raises BadRequest as ``find`` does.
    """
    found = find(IMDB[0], HOW_IMDB, data_dir, download)
    reviews = _reviews(found)
    tokens = {part: [words(text) for p, _, _, text in reviews if p == part] for part in ("train", "test")}
    frequent = _types((word for review in tokens["train"] for word in review), types - 2)
    symbols = ("<pad>", UNKNOWN, *frequent)

    def samples(part: str) -> Data:
        kept = [review[-longest:] or [UNKNOWN] for review in tokens[part]]
        lengths = np.array([len(review) for review in kept], np.int32)
        xs = np.zeros((len(kept), longest), np.int32)
        xs[np.arange(longest)[None] < lengths[:, None]] = _numbers([w for review in kept for w in review], symbols)
        return Data(xs, np.array([label for p, _, label, _ in reviews if p == part], np.int32), lengths)

    train, test = samples("train"), samples("test")
    cut = len(train.xs) * 9 // 10
    rest, valid = (jax.tree.map(lambda a, part=part: a[part], train) for part in (slice(0, cut), slice(cut, None)))
    return DataSet(rest, test, {found.file.name: found.file.digest}, valid, symbols)
