"""The corpus: which files it takes, and that its two parts share none."""

import pytest

from int8pass.experiments.corpus import is_validation, load_corpus


def text(part):
    return bytes(part.tolist())


@pytest.fixture
def folder(tmp_path):
    """Forty files, one a name, and some that are no part of the corpus."""
    for number in range(40):
        (tmp_path / f"module{number:02}.py").write_text(f"# file {number:02}", encoding="utf-8")
    for name in ("test/test_it.py", "package/tests/more.py", "encodings/cp1.py", "site-packages/other.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# left out", encoding="utf-8")
    (tmp_path / "package" / "inner.py").write_text("# inner", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("# left out", encoding="utf-8")
    return tmp_path


def test_every_file_is_in_one_part_and_stays_there(folder):
    corpus = load_corpus(folder)
    names = [f"module{number:02}.py" for number in range(40)]
    held_out = [name for name in names if is_validation(name)]
    assert 0 < len(held_out) < 20
    assert text(corpus.validation) == b"\n".join(b"# file " + name[6:8].encode() for name in held_out)
    kept = [b"# file " + name[6:8].encode() for name in names if name not in held_out]
    assert text(corpus.train) == b"\n".join([*kept, b"# inner"])


def test_the_digest_follows_the_text(folder):
    first = load_corpus(folder)
    assert load_corpus(folder).digest == first.digest
    (folder / "module00.py").write_text("# changed", encoding="utf-8")
    assert load_corpus(folder).digest != first.digest


def test_a_limit_cuts_both_parts(folder):
    corpus, whole = load_corpus(folder, limit=9), load_corpus(folder)
    assert text(corpus.train) == text(whole.train)[:9] and text(corpus.validation) == text(whole.validation)[:9]


def test_the_standard_library_is_megabytes_of_python():
    corpus = load_corpus()
    assert len(corpus.train) > 5e6 and len(corpus.validation) > 2e5
    assert b"import sys" in text(corpus.train[:1_000_000])
