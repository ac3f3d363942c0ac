"""Data sets: where they are searched, how they are verified and fetched, and the arrays made of them."""

import functools
import gzip
import hashlib
import http.server
import importlib.machinery
import io
import json
import lzma
import os
import tarfile
import threading
import urllib.error
import zipfile

import jax
import numpy as np
import pytest

from experiments.__main__ import main
from experiments.datasets import data, text
from experiments.datasets import published as files
from experiments.datasets.download import fetch
from experiments.datasets.published import Published, find, unpacked
from experiments.run import BadRequest
from tests.experiments.common import refuses, said
from tests.rejects import rejects

CONTENT = b"a published content, " * 50
REAL = os.environ.get("MGU_JAX_DATA")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No folder with data unless a test names one, and an empty cache."""
    monkeypatch.delenv("MGU_JAX_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def published(content=CONTENT, name="set.txt", holders=("set.txt.gz", "set.zip", "set.tgz"), **more):
    return Published(name, len(content), hashlib.sha256(content).hexdigest(), holders, **more)


def archive(kind, name, content):
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as file:
            file.writestr(f"inside/{name}", content)
    else:
        with tarfile.open(fileobj=out, mode="w:gz") as file:
            member = tarfile.TarInfo(f"./inside/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return out.getvalue()


HELD = {
    "set.txt": CONTENT,
    "set.txt.gz": gzip.compress(CONTENT),
    "set.txt.xz": lzma.compress(CONTENT),
    "set.zip": archive("zip", "set.txt", CONTENT),
    "set.tgz": archive("tgz", "set.txt", CONTENT),
}


@pytest.mark.parametrize("holder", HELD)
def test_a_file_is_verified_by_its_unpacked_content(holder, tmp_path):
    (tmp_path / holder).write_bytes(HELD[holder])
    found = find(published(holders=tuple(HELD)), "get it", tmp_path)
    assert found.content == CONTENT
    assert found.where == str(tmp_path / holder)
    # One byte less, and it is damaged; another content, too.
    assert unpacked(HELD[holder][:-30], holder, "set.txt") != CONTENT
    (tmp_path / holder).write_bytes(HELD[holder][:-30])
    with pytest.raises(BadRequest, match=f"{holder} is damaged or another file than the published one: get it"):
        find(published(holders=tuple(HELD)), "get it", tmp_path)


@pytest.mark.parametrize("holder", HELD)
def test_a_flip_of_any_bit_is_noticed(holder):
    for i in range(8 * len(HELD[holder])):
        damaged = bytearray(HELD[holder])
        damaged[i // 8] ^= 1 << i % 8
        content = unpacked(bytes(damaged), holder, "set.txt")
        assert content == CONTENT or not files.is_published(content, published()), i


def test_places_are_searched_in_order(tmp_path, monkeypatch):
    named, variable, cache = tmp_path / "named", tmp_path / "variable", files.cache()
    monkeypatch.setenv("MGU_JAX_DATA", str(variable))
    installed = tmp_path / "package" / "set.txt"
    file = published(installed=("a_package_that_nobody_has/x", str(installed)))
    for folder in (named, variable, cache, installed.parent):
        folder.mkdir(parents=True)
        (folder / "set.txt").write_bytes(CONTENT)
    for folder in (named, variable, cache):
        assert find(file, "get it", named).where == str(folder / "set.txt")
        (folder / "set.txt").unlink()
    assert find(file, "get it", named).where == str(installed)
    installed.unlink()
    searched = f"in none of the folders {named}, {variable}, {cache}"
    rejects(lambda: find(file, "get it", named), "set.txt.gz", searched, "get it", BadRequest)


def test_an_installed_package_and_a_command(tmp_path, monkeypatch):
    package = tmp_path / "apackage"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    (package / "set.txt").write_bytes(CONTENT)
    spec = importlib.machinery.ModuleSpec("apackage", None, origin=str(package / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec if name == "apackage" else None)
    assert find(published(installed=("apackage/set.txt",)), "get it", None).where == str(package / "set.txt")

    (tmp_path / "set").write_bytes(CONTENT)
    assert find(published(printed_by=("cat", str(tmp_path / "set"))), "get it", None).content == CONTENT
    other = published(printed_by=("cat", str(package / "__init__.py")))
    rejects(lambda: find(other, "get it", None), "set.txt.gz", "in none of the folders", "get it", BadRequest)


def test_the_same_data_in_another_file(tmp_path):
    other = b"the same data otherwise"
    file = published(otherwise=published(other, "other.txt", ()))
    (tmp_path / "other.txt").write_bytes(other)
    assert find(file, "get it", tmp_path).content == other


class Server(http.server.BaseHTTPRequestHandler):
    """A server of one content that answers ranges and may stop before the end."""

    def __init__(self, content, asked, gives, *arguments):
        self.content, self.asked, self.gives = content, asked, gives
        super().__init__(*arguments)

    def do_GET(self):
        first = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.asked.append(first)
        if self.path != "/set.txt.gz":
            return self.send_error(404)
        if first >= len(self.content):
            return self.send_error(416)
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(self.content) - first))
        self.end_headers()
        return self.wfile.write(self.content[first:][: self.gives.pop(0)])

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """serve(content, gives) -> (address, list of first bytes asked for); gives: bytes that each answer ends after."""
    servers = []

    def start(content, gives):
        asked = []
        server = http.server.HTTPServer(("127.0.0.1", 0), functools.partial(Server, content, asked, gives))
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_download_continues_where_it_stopped(serve):
    packed = gzip.compress(np.random.default_rng(0).bytes(5000))
    content = gzip.decompress(packed)
    address, asked = serve(packed, [2000, 10_000])
    file = published(content, url=f"{address}/set.txt.gz", saved_as="set.txt.gz")
    with pytest.raises(BadRequest, match="2,000 bytes are kept for the next attempt"):
        find(file, "get it", None, download=True)
    assert [path.name for path in files.cache().iterdir()] == ["set.txt.gz.part"]
    assert find(file, "get it", None, download=True).content == content
    assert [path.name for path in files.cache().iterdir()] == ["set.txt.gz"]
    assert asked == [0, 2000]
    assert find(file, "get it", None, download=True).where == str(files.cache() / "set.txt.gz")
    assert len(asked) == 2  # a file in the cache is not fetched again
    # A draft that is already whole.
    (files.cache() / "set.txt.gz").rename(files.cache() / "set.txt.gz.part")
    assert find(file, "get it", None, download=True).content == content


def test_a_download_that_differs_from_the_published_file_is_removed(serve):
    address, _ = serve(gzip.compress(b"other"), [10_000])
    file = published(url=f"{address}/set.txt.gz", saved_as="set.txt.gz")
    with pytest.raises(BadRequest, match="--download got another file than the published one from http"):
        find(file, "get it", None, download=True)
    assert list(files.cache().iterdir()) == []


def test_two_downloads_at_once_do_not_mix(serve, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    address, _ = serve(b"content", [10_000, 10_000])
    path, draft = tmp_path / "x", tmp_path / "x.part"
    with draft.open("ab") as other:  # as another process holds it
        fcntl.flock(other, fcntl.LOCK_EX)
        rejects(
            lambda: fetch(f"{address}/set.txt.gz", path, bool), "--download", "once at a time", str(draft), BadRequest
        )
    fetch(f"{address}/set.txt.gz", path, bool)
    assert path.read_bytes() == b"content"


def test_no_address_no_network_and_a_wrong_address(serve, tmp_path, monkeypatch):
    with pytest.raises(BadRequest, match=r"set\.txt cannot be downloaded: get it"):
        find(published(), "get it", None, download=True)
    address, _ = serve(b"", [])
    with pytest.raises(BadRequest, match=f"--download got status 404 from {address}/x; nothing was written"):
        fetch(f"{address}/x", files.cache() / "x", bool)

    def no_network(*_, **__):
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    what = "Temporary failure in name resolution); nothing was written"
    call = lambda: fetch("https://example.org/x", files.cache() / "x", bool)  # noqa: E731
    rejects(call, "--download", "needs example.org", what, BadRequest)
    assert not files.cache().exists()


def test_a_cache_that_cannot_be_written_is_one_sentence(serve, tmp_path):
    address, _ = serve(b"content", [10_000])
    (tmp_path / "file").write_text("")
    call = lambda: fetch(f"{address}/set.txt.gz", tmp_path / "file" / "x", bool)  # noqa: E731
    rejects(call, "--download", f"cannot write {tmp_path / 'file' / 'x.part'}", "File exists", BadRequest)


def test_other_digits_are_refused(monkeypatch):
    monkeypatch.setattr(data, "_DIGITS", ["0", "1"])
    with pytest.raises(BadRequest, match="load_digits gives other digits than were published"):
        data.digits()


def test_the_command_lists_the_sets(tmp_path, capsys, monkeypatch):
    small = published(name="small", holders=())
    monkeypatch.setitem(data.SETS, "mnist", ("50 words", (small, small), "get it"))
    (tmp_path / "small").write_bytes(CONTENT)
    assert main(["data", "--data-dir", str(tmp_path), "--sets", "digits", "mnist", "ptb"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].startswith("  digits       1,797 images          scikit-learn ")
    assert listed[1] == f"  mnist        50 words              {tmp_path / 'small'}"
    assert listed[2] == "  ptb          not found"
    reason = " ".join(line.strip() for line in listed[3:])
    assert reason.startswith("ptb.zip is in none of the folders ")
    assert all(len(line) <= 120 or " " not in line.strip() for line in listed)
    monkeypatch.setattr("shutil.which", lambda _: None)  # a machine without the command bible
    assert main(["data", "--sets", "kjv", "--download"]) == 2
    said(capsys, "--download", "1 of the 1 sets")
    refuses(capsys, ["data", "--sets", "nothing"], "--sets", "some of digits, mnist, vowels", "nothing")


def put(monkeypatch, tmp_path, place, names, contents):
    """Replace published contents by others, in files with the published names."""
    fakes = [published(c, file.name, ()) for c, file in zip(contents, getattr(place, names), strict=True)]
    monkeypatch.setattr(place, names, tuple(fakes))
    for file, content in zip(fakes, contents, strict=True):
        (tmp_path / file.name).write_bytes(content)


def test_vowels_are_padded_and_scaled_by_the_training_set(monkeypatch, tmp_path):
    train = b"#about\n@data\n1,2,3:10,20,30:1\n5:50:2\n"
    put(monkeypatch, tmp_path, data, "VOWELS", (train, b"@data\n3,3:30,0:9\n"))
    vowels = data.vowels(tmp_path)
    assert vowels.train.xs.shape == (2, 29, 2)
    assert vowels.train.lengths.tolist() == [3, 1]
    assert vowels.train.targets.tolist() == [0, 1]
    assert vowels.test.targets.tolist() == [8]
    steps = np.array([1.0, 2, 3, 5])
    np.testing.assert_allclose(vowels.train.xs[0, :3, 0], (steps[:3] - steps.mean()) / steps.std(), rtol=1e-6)
    np.testing.assert_allclose(vowels.test.xs[0, :2, 1], (np.array([30, 0]) - 27.5) / (10 * steps.std()), rtol=1e-6)
    assert not vowels.train.xs[1, 1:].any()


def test_words_of_a_treebank(monkeypatch, tmp_path):
    put(monkeypatch, tmp_path, text, "PTB", (b" a b a \n c <unk> \n", b" c a \n", b" b \n"))
    ptb = text.ptb(tmp_path)
    assert ptb.symbols == ("<eos>", "a", "<unk>", "b", "c")
    assert ptb.train.xs.tolist() == [1, 3, 1, 0, 4, 2]
    assert ptb.train.targets.tolist() == [3, 1, 0, 4, 2, 0]
    assert ptb.valid.xs.tolist() == [4, 1]
    assert ptb.test.targets.tolist() == [0]


def test_verses_and_characters(monkeypatch, tmp_path):
    assert text.verses("Ge1:1 In the Beginning: man's\nGe1:2 (and) day-star\n") == (
        ["in", "the", "beginning", ":", "man's", "<eos>", "(", "and", ")", "day-star", "<eos>"]
    )
    put(monkeypatch, tmp_path, text, "KJV", (b"".join(b"Ge1:%d a b\n" % i for i in range(19)) + b"Re1:1 a z\n",))
    kjv = text.kjv(tmp_path)
    assert kjv.symbols == ("<unk>", "<eos>", "a", "b")
    assert [len(part.xs) for part in (kjv.train, kjv.valid, kjv.test)] == [53, 2, 2]
    assert kjv.test.targets.tolist() == [0, 1]  # z is not among the types of the training part
    put(monkeypatch, tmp_path, text, "SHAKESPEARE", (b"ab" * 100,))
    shakespeare = text.shakespeare(tmp_path)
    assert shakespeare.symbols == ("a", "b")
    assert [len(part.xs) for part in (shakespeare.train, shakespeare.valid, shakespeare.test)] == [179, 9, 9]
    train, test, _, valid, _ = text.shakespeare(tmp_path, validate=False)
    assert (len(train.xs), len(test.xs), valid) == (179, 19, None)
    assert test.targets.tolist() == [*[1, 0] * 9, 1]


def test_reviews_are_the_same_from_both_files(monkeypatch, tmp_path):
    """Both published forms of IMDB give the same arrays; the last tokens are kept, the last tenth validates."""
    rows = [
        {
            "split": split,
            "label": label,
            "id": i,
            "rating": 9,
            "text": f"It's {'good' if label else 'bad'}!<br />No. {i}",
        }
        for split in ("train", "test")
        for label in (1, 0)
        for i in range(10)
    ]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        for row in rows:
            place = f"aclImdb/{row['split']}/{'pos' if row['label'] else 'neg'}/{row['id']}_{row['rating']}.txt"
            for name in (place, "aclImdb/train/unsup/0_0.txt"):
                member = tarfile.TarInfo(name)
                member.size = len(row["text"])
                file.addfile(member, io.BytesIO(row["text"].encode()))
    packed, lines = out.getvalue(), "\n".join(map(json.dumps, rows)).encode()
    other = Published("aclImdb_v1.tar.gz", len(packed), hashlib.md5(packed).hexdigest())
    monkeypatch.setattr(text, "_ACL_IMDB", other)
    monkeypatch.setattr(text, "IMDB", (published(lines, "imdb.jsonl", ("imdb.jsonl.xz",), otherwise=other),))
    (tmp_path / "aclImdb_v1.tar.gz").write_bytes(packed)
    sets = [text.imdb(tmp_path, longest=4, types=9)]
    (tmp_path / "imdb.jsonl.xz").write_bytes(lzma.compress(lines))
    sets.append(text.imdb(tmp_path, longest=4, types=9))
    assert sets[0].sources != sets[1].sources
    for left, right in zip(jax.tree.leaves(sets[0][:2]), jax.tree.leaves(sets[1][:2]), strict=True):
        np.testing.assert_array_equal(left, right)
    imdb = sets[0]
    assert [len(part.xs) for part in (imdb.train, imdb.valid, imdb.test)] == [18, 2, 20]
    assert imdb.valid.targets.tolist() == [0, 1]
    assert [imdb.symbols[i] for i in imdb.train.xs[0]] == ["bad", "!", "no", "0"]
    assert imdb.symbols[:2] == ("<pad>", "<unk>")
    assert set(imdb.symbols[2:6]) == {"!", "it's", "no", "bad"}


REAL_SIZES = {
    "ptb": ((929_588, 73_759, 82_429), 10_000),
    "kjv": ((850_236, 47_234, 47_235), 10_000),
    "shakespeare": ((1_003_853, 55_769, 55_769), 65),
}


@pytest.mark.skipif(not REAL, reason="MGU_JAX_DATA names no folder with the published files")
@pytest.mark.parametrize("name", REAL_SIZES)
def test_the_real_texts(name):
    found = getattr(text, name)(REAL)
    sizes, types = REAL_SIZES[name]
    assert tuple(len(part.xs) for part in (found.train, found.valid, found.test)) == sizes
    assert len(found.symbols) == types
    for part in (found.train, found.valid, found.test):
        np.testing.assert_array_equal(part.xs[1:], part.targets[:-1])
        assert 0 <= part.xs.min() <= part.xs.max() < types


@pytest.mark.skipif(not REAL, reason="MGU_JAX_DATA names no folder with the published files")
def test_the_real_vowels():
    vowels = data.vowels(REAL)
    assert vowels.train.xs.shape == (270, 29, 12)
    assert np.bincount(vowels.train.targets).tolist() == [30] * 9
    assert np.bincount(vowels.test.targets).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert (vowels.train.lengths.min(), vowels.test.lengths.max()) == (7, 29)


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="MGU_JAX_DATA names no folder with the published files")
def test_the_real_reviews():
    imdb = text.imdb(REAL)
    assert [len(part.xs) for part in (imdb.train, imdb.valid, imdb.test)] == [22_500, 2_500, 25_000]
    assert imdb.test.targets.mean() == 0.5
    assert imdb.train.lengths.max() == 400


def test_the_held_out_quarter_of_the_digits():
    """A quarter of each class, disjoint from the training part; rows are read from the top."""
    digits = data.digits()
    assert digits.train.xs.shape == (1347, 8, 8)
    assert digits.test.xs.shape == (450, 8, 8)
    images = {x.tobytes() for x in digits.train.xs}
    assert sum(x.tobytes() in images for x in digits.test.xs) == 0
    counts = np.bincount(digits.test.targets) / np.bincount(np.concatenate([digits.train.targets, digits.test.targets]))
    assert np.all(np.abs(counts - 0.25) < 0.01)
    from sklearn.datasets import load_digits

    originals = {image.astype(np.float32).tobytes() for image in load_digits().images / 16}
    assert all(x.tobytes() in originals for x in digits.test.xs)


def test_a_missing_data_folder_is_one_sentence(tmp_path, capsys):
    refuses(capsys, ["data", "--data-dir", tmp_path / "none"], "--data-dir", "a folder", tmp_path / "none")


def test_mnist_without_the_files_is_one_sentence(tmp_path, capsys):
    for flags in ([], ["--data-dir", tmp_path]):
        run_flags = ["mnist-rows", "--out", tmp_path / "run", *flags]
        refuses(capsys, run_flags, "train-images-idx3-ubyte.gz", "--data-dir or MGU_JAX_DATA")
    assert list(tmp_path.iterdir()) == []


DAMAGED = {
    "empty": b"",
    "not gzip": b"no gzip",
    "another": gzip.compress(b"another file"),
    "cut short": gzip.compress(b"a" * 99)[:-9],
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_named(tmp_path, kind):
    content, name = DAMAGED[kind], "train-images-idx3-ubyte.gz"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadRequest, match=f"{name} is damaged or another file than the published one: get the four"):
        data.mnist(tmp_path)
