import itertools
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.publish import published
from data.shard_writer import TokenDocument, plan_shards
from data.shards import IN_LOSS, Index, MappedShard, token_dtype, use_value
from tests.splits import write_split

U16 = np.dtype("<u2")


def documents(lengths, examples=False, seed=0):
    draw = np.random.default_rng(seed)
    made = []
    for number, length in enumerate(lengths):
        tokens = draw.integers(4, 60_000, length)
        uses = draw.integers(0, 4, length).astype(np.uint8) if examples else None
        made.append(TokenDocument(f"doc{number}", "made", tokens, 3 * length, f"{number:032x}", uses))
    return made


def written(folder, lengths, kind="text", shard_tokens=500, block_tokens=64):
    made = documents(lengths, kind == "examples")
    index = write_split(folder, "train", made, U16, "t" * 64, kind, shard_tokens, block_tokens)
    return made, index


@pytest.fixture
def folder(tmp_path):
    written(tmp_path, [7, 300, 1, 64, 64, 128, 500, 33, 2] * 3)
    return tmp_path


def every_token(index):
    return np.concatenate([MappedShard(index.folder, s, index.dtype).tokens(0, s.tokens) for s in index.shards])


@pytest.mark.parametrize("kind", ["text", "examples"])
def test_stock_webdataset_reads_the_tokens_that_we_map(tmp_path, kind):
    import webdataset

    made, index = written(tmp_path, [50, 700, 3, 90, 200, 800], kind)
    urls = [str(tmp_path / shard.url) for shard in index.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    expected = np.concatenate([document.tokens for document in made])
    assert len(index.shards) > 2
    assert np.array_equal(np.concatenate([sample["tok.npy"] for sample in samples]), expected)
    assert np.array_equal(every_token(index), expected)
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(len(samples))]
    if kind == "examples":
        uses = np.concatenate([document.uses for document in made])
        assert np.array_equal(np.concatenate([sample["use.npy"] for sample in samples]), uses)
        mapped = [MappedShard(tmp_path, shard, U16).uses(0, shard.tokens) for shard in index.shards]
        assert np.array_equal(np.concatenate(mapped), uses)


def test_stock_wids_opens_the_index(folder, monkeypatch, tmp_path_factory):
    import wids

    monkeypatch.setenv("WIDS_CACHE", str(tmp_path_factory.mktemp("wids")))
    opened = wids.ShardListDataset(str(folder / "train.index.json"), transformations=[])
    index = Index.load(folder, "train")
    got = np.concatenate([np.load(opened[number][".tok.npy"]) for number in range(len(opened))])
    assert np.array_equal(got, every_token(index))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=30),
    shard_tokens=st.integers(1, 1500),
    block_tokens=st.integers(1, 300),
    data=st.data(),
)
def test_a_mapped_slice_is_what_was_written(tmp_path, lengths, shard_tokens, block_tokens, data):
    made, index = written(tmp_path, lengths, "examples", shard_tokens, block_tokens)
    assert index == Index.load(tmp_path, "train")
    assert (index.tokens, index.documents, index.text_bytes) == (sum(lengths), len(lengths), 3 * sum(lengths))
    left = iter(made)
    for shard in index.shards:
        mapped = MappedShard(tmp_path, shard, index.dtype)
        mine = list(itertools.islice(left, shard.documents))
        tokens, uses = (np.concatenate([getattr(document, name) for document in mine]) for name in ("tokens", "uses"))
        start = data.draw(st.integers(0, shard.tokens))
        stop = data.draw(st.integers(start, shard.tokens))
        assert np.array_equal(mapped.tokens(start, stop), tokens[start:stop])
        assert np.array_equal(mapped.uses(start, stop), uses[start:stop])
        sizes = [len(document.tokens) for document in mine]
        assert mapped.document_starts().tolist() == [0, *itertools.accumulate(sizes)][:-1]


def test_a_slice_inside_a_block_is_a_view_and_a_slice_past_the_end_an_error(folder):
    shard = Index.load(folder, "train").shards[0]
    mapped = MappedShard(folder, shard, U16)
    assert not mapped.tokens(3, 60).flags.owndata
    assert np.array_equal(mapped.uses(0, 5), np.full(5, IN_LOSS))
    assert len(mapped.tokens(5, 5)) == 0
    with pytest.raises(IndexError, match=r"train-000000\.tar"):
        mapped.tokens(0, shard.tokens + 1)


def test_threads_read_the_same_as_one(folder):
    index = Index.load(folder, "train")
    mapped = [MappedShard(folder, shard, U16) for shard in index.shards]
    alone = [(m.tokens(0, m.entry.tokens).sum(), len(m.document_starts())) for m in mapped]
    fresh = [MappedShard(folder, shard, U16) for shard in index.shards]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            got = threads.map(lambda m: (m.tokens(0, m.entry.tokens).sum(), len(m.document_starts())), fresh)
            assert list(got) == alone


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 2000))
def test_shards_take_every_document_once_and_end_at_document_ends(lengths, shard_tokens):
    plan = plan_shards(lengths, shard_tokens)
    assert [number for part in plan for number in range(part.start, part.stop)] == list(range(len(lengths)))
    assert len(plan) <= max(1, sum(lengths) // shard_tokens)
    if lengths:
        share = sum(lengths) / max(1, sum(lengths) // shard_tokens)
        assert all(part.stop > part.start for part in plan)
        sizes = [sum(lengths[part]) for part in plan]
        assert max(sizes) < share + 2 * max(lengths)


def test_no_shard_is_a_short_remainder():
    sizes = [(part.stop - part.start) * 10 for part in plan_shards([10] * 1050, 1000)]
    assert len(sizes) == 10
    assert min(sizes) >= 1000


def test_an_empty_split_is_legal(tmp_path):
    _, index = written(tmp_path, [])
    loaded = Index.load(tmp_path, "train")
    assert loaded == index
    assert (loaded.tokens, loaded.documents, loaded.shards, loaded.verify()) == (0, 0, (), [])


def test_two_writes_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        written(tmp_path / name / "same", [30, 400, 90, 1000])
    first, second = (sorted((tmp_path / name / "same").iterdir()) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with tarfile.open(tmp_path / "a" / "same" / "train-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o444)
            assert (member.uname, member.gname) == ("luban", "luban")


def test_a_missing_shard_is_an_error_that_names_it(folder):
    (folder / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar is missing"):
        Index.load(folder, "train")


def test_a_truncated_shard_is_an_error_with_both_sizes(folder):
    path = folder / "train-000001.tar"
    size = path.stat().st_size
    index = Index.load(folder, "train")
    path.write_bytes(path.read_bytes()[:-512])
    for look in (lambda: Index.load(folder, "train"), lambda: MappedShard(folder, index.shards[1], U16)):
        with pytest.raises(UserError, match=rf"train-000001\.tar.* {size - 512:,} bytes.*{size:,}"):
            look()
    assert "train-000001.tar" in index.verify()[0]
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"train-000001\.tar"):
        MappedShard(folder, index.shards[1], U16)


def test_a_flipped_bit_and_a_swap_are_found_by_verify(folder):
    index = Index.load(folder, "train")
    path = folder / "train-000002.tar"
    good = path.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    path.write_bytes(bad)
    read = []
    problems = Index.load(folder, "train").verify(read.append)
    assert len(problems) == 1
    assert "train-000002.tar" in problems[0]
    assert sum(read) == sum(shard.file_size for shard in index.shards)
    path.write_bytes(good)
    assert index.verify() == []


def test_the_fingerprint_tells_other_tokens_and_another_order_apart(tmp_path):
    prints = set()
    for number, (lengths, seed, tokenizer) in enumerate([([9, 9], 0, "a"), ([9, 9], 1, "a"), ([9, 9], 0, "b")]):
        index = write_split(tmp_path / str(number), "train", documents(lengths, seed=seed), U16, tokenizer)
        prints.add(index.fingerprint)
        assert Index.load(tmp_path / str(number), "train").fingerprint == index.fingerprint
    assert len(prints) == 3


def test_errors_name_folder_split_and_what_is_known(folder, tmp_path):
    with pytest.raises(UserError, match=r"no split 'test'. Its splits: train"):
        Index.load(folder, "test")
    with pytest.raises(UserError, match=r"no dataset at .*nowhere.*luban data build"):
        Index.load(tmp_path / "nowhere", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no dataset"):
        Index.load(tmp_path / "empty", "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2 of luban-shards; this Luban reads version 1"),
        ({"format": "other"}, "not an index of Luban's shards"),
        ({"shardlist": [{"url": "x"}]}, "damaged"),
        ({"dtype": "nonsense"}, "damaged"),
    ],
)
def test_a_newer_or_damaged_index_is_refused(folder, change, message):
    path = folder / "train.index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        Index.load(folder, "train")


def test_an_index_whose_blocks_do_not_add_up_is_refused(folder):
    path = folder / "train.index.json"
    said = json.loads(path.read_text())
    said["shardlist"][1]["blocks"].pop()
    path.write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"damaged.*train-000001\.tar"):
        Index.load(folder, "train")


def test_a_file_that_fails_while_it_is_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), published(path) as temporary:
        temporary.write_text("half")
        raise OSError("full")
    assert [(held.name, held.read_text()) for held in tmp_path.iterdir()] == [("x.json", "old")]


def test_use_bytes_hold_loss_and_field():
    assert (use_value("prompt", False), use_value("completion", True)) == (0b00, 0b11)
    assert token_dtype(65536).itemsize == 2
    assert token_dtype(65537).itemsize == 4
