"""Best-fit plans: every token in its place, no row too full, no example cut, and no other plan than the one written."""

import json
import os
import shutil
from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import reader as reading
from data import trace
from data.build.build import build
from data.build.workplace import InProcess, pool
from data.dataset import FILE, Dataset, load_dataset
from data.errors import UserError
from data.order import best_fit
from data.order.order import Order
from data.order.pack import pack, pack_dataset
from data.order.packing import Packing, contexts, file_name, fill, load_packing
from data.publish import locked
from data.reader import LocalReader, layout
from data.remote.remote import Access
from data.remote.streaming import StreamingReader
from data.shards import IN_LOSS, Index, MappedShard
from tests.data.build.test_build import digests
from tests.data.conftest import english
from tests.data.fault_server import Server
from tests.data.test_shards import U16, documents, written
from tests.splits import write_split
from trainer.models.loss import IGNORED
from trainer.objectives.causal import Causal

CONTEXT = 16
LENGTHS = [7, 90, 1, 1, 40, 33, 128, 200, 5, 17, 16, 2, 64, 1, 150, 31, 80, 12, 3, 99] * 2
lengths_ = st.lists(st.integers(1, 70), min_size=1, max_size=60)


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """A corpus this small has a hundred epochs in a chunk of the usual size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "RESOLVED", 64)
        yield


def packed(index: Index, context: int) -> Packing:
    """The index's plans, made now."""
    pack([index], [context], InProcess(), 2)
    return load_packing(index, context + 1)


def read(index: Index, context: int):
    """Every row of an epoch of packed rows, in the order of shards and plans."""
    order = Order(layout(index, context, "best_fit"), 3, 2)
    shards = np.repeat(np.arange(len(index.shards)), order.layout.rows)
    rows = np.concatenate([np.arange(count) for count in order.layout.rows])
    return LocalReader(index, order, context).rows(order.positions(0, shards, rows))


# -- the algorithm ---------------------------------------------------------------------------------------------------


def one_by_one(lengths: np.ndarray, row_length: int) -> list[int]:
    """Best-fit-decreasing as the books have it; the tokens of each row."""
    held: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [row for row in range(len(held)) if held[row] + length <= row_length]
        if fitting:
            held[max(fitting, key=lambda row: held[row])] += length
        else:
            held.append(length)
    return sorted(held)


@settings(max_examples=200, deadline=None)
@given(lengths=lengths_, row_length=st.integers(2, 70))
def test_placing_equal_lengths_together_fills_rows_as_one_by_one_does(lengths, row_length):
    pieces = np.minimum(np.array(lengths), row_length)
    row = best_fit.best_fit(pieces, row_length)
    held = np.bincount(row, pieces).astype(int)
    assert sorted(held.tolist()) == one_by_one(pieces, row_length)
    assert held.min() > 0  # rows are numbered without a gap


@settings(max_examples=200, deadline=None)
@given(lengths=lengths_, row_length=st.integers(2, 40))
def test_each_token_but_a_documents_first_is_a_label_in_exactly_one_piece(lengths, row_length):
    ends = np.cumsum(lengths)
    firsts, held = best_fit.cut(ends - lengths, int(ends[-1]), row_length)
    labels = [token for first, count in zip(firsts, held, strict=True) for token in range(first + 1, first + count)]
    assert labels == [token for start, end in pairwise([0, *ends.tolist()]) for token in range(start + 1, end)]
    assert held.min() >= 1 and held.max() <= row_length
    for length, start in zip(lengths, ends - lengths, strict=True):
        mine = held[(firsts >= start) & (firsts < start + length)]
        assert len(mine) == 1 or (mine[:-1] == row_length).all()  # only its remainder shares a row


@settings(max_examples=100, deadline=None)
@given(lengths=lengths_, row_length=st.integers(2, 40))
def test_chopping_cuts_the_documents_that_lie_whole_in_no_row(lengths, row_length):
    ends = np.cumsum(lengths)
    starts = ends - lengths
    rows = range(0, int(ends[-1]), row_length - 1)
    whole = [
        any(first <= start and end <= first + row_length for first in rows)
        for start, end in zip(starts, ends, strict=True)
    ]
    assert best_fit.chopped(starts, int(ends[-1]), row_length) == whole.count(False)


# -- rows ------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(lengths=lengths_, context=st.integers(1, 40), kind=st.sampled_from(["text", "examples"]))
def test_rows_hold_every_document_and_an_example_whole(tmp_path_factory, lengths, context, kind):
    context = max(context, max(lengths) - 1) if kind == "examples" else context
    made, index = written(tmp_path_factory.mktemp("made"), lengths, kind, shard_tokens=500)
    filled = packed(index, context).fill
    rows = read(index, context)
    assert rows.packed and rows.tokens.shape == (filled.rows, context + 1)
    assert (rows.lengths <= context + 1).all() and rows.lengths.sum() == filled.tokens
    found = []
    for slot, (length, starts) in enumerate(zip(rows.lengths, rows.starts, strict=True)):
        assert starts[0] == 0 and (np.diff(starts) > 0).all()
        assert not rows.tokens[slot, length:].any()
        for begin, end in pairwise([*starts.tolist(), int(length)]):
            use = rows.use[slot, begin:end] if rows.use is not None else np.zeros(end - begin)
            found.append((*rows.tokens[slot, begin:end].tolist(), *use.tolist()))
    expected = []
    for document in made:
        uses = np.zeros(len(document.tokens)) if document.uses is None else document.uses
        for first in range(0, max(1, len(document.tokens) - 1), context):
            part = slice(first, first + context + 1)
            expected.append((*document.tokens[part].tolist(), *uses[part].tolist()))
    assert sorted(found) == sorted(expected)
    assert filled.cut == sum(length > context + 1 for length in lengths)
    assert (filled.unread, filled.documents) == (0, len(lengths))


@pytest.mark.parametrize("kind", ["text", "examples"])
def test_labels_are_the_tokens_of_documents_but_their_first(tmp_path, kind):
    context = CONTEXT if kind == "text" else 200
    _, index = written(tmp_path, LENGTHS, kind, shard_tokens=300)
    filled = packed(index, context).fill
    rows = read(index, context)
    asked = Causal().batch(rows, torch.device("cpu")).labels.numpy() != IGNORED
    if kind == "text":
        assert asked.sum() == filled.labels == sum(LENGTHS) - len(LENGTHS)
    else:
        assert rows.use is not None
        marked = (rows.use & IN_LOSS).astype(bool)
        for slot, starts in enumerate(rows.starts):
            marked[slot, starts] = False
        assert np.array_equal(asked, marked[:, 1 : asked.shape[1] + 1]) and 0 < asked.sum() < filled.labels


def test_plan_finds_the_documents_of_a_row_and_the_rows_of_a_document(tmp_path):
    _, index = written(tmp_path, LENGTHS, shard_tokens=300)
    packing = packed(index, CONTEXT)
    for number, shard in enumerate(index.shards):
        plan = packing.plan(number)
        starts = MappedShard(tmp_path, shard, U16).document_starts()
        ends = np.append(starts[1:], shard.tokens)
        pairs = set()
        for row in range(packing.plans[number].fill.rows):
            for begin, end in plan.spans(row):
                (document,) = np.flatnonzero((starts <= begin) & (end <= ends))
                pairs.add((row, int(document)))
        rows = np.arange(packing.plans[number].fill.rows)[::-1]
        which, held = plan.documents(starts, rows)
        assert set(zip(rows[which].tolist(), held.tolist(), strict=True)) == pairs
        wanted = np.arange(len(starts))[::-1]
        which, held = plan.rows(starts, shard.tokens, wanted)
        assert {(row, document) for document, row in zip(wanted[which].tolist(), held.tolist(), strict=True)} == pairs


def test_rows_are_fuller_than_97_percent_and_cut_fewer_documents_than_chopping(small_dataset, english_texts, tmp_path):
    """On the standard library's code, and on English cut into paragraphs."""
    copy = shutil.copytree(small_dataset.folder, tmp_path / "copy")
    index = pack_dataset(copy, [256]).index("train")
    filled = load_packing(index, 257).fill
    assert filled.utilisation >= 0.97
    assert (filled.cut or 0) <= (fill(index, 256, "chop").cut or 0)
    tokenizer = small_dataset.tokenizer()
    parts = [part for text in english_texts for part in text.split("\n\n") if part.strip()]
    if len(parts) < 100:  # made up, where the machine has no corpora
        parts = [english(seed, 5 + 37 * seed % 60) for seed in range(600)]
    sizes = [len(tokenizer.encode(part)) + 1 for part in parts]
    prose = write_split(tmp_path / "prose", "train", documents(sizes), U16, "t" * 64)
    filled, chop = packed(prose, 256).fill, fill(prose, 256, "chop")
    assert filled.utilisation >= 0.97
    assert (filled.cut or 0) < 0.5 * (chop.cut or 0)
    assert chop.utilisation == 1 and chop.unread < 256 * len(prose.shards)


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(small_dataset: Dataset, tmp_path):
    return shutil.copytree(small_dataset.folder, tmp_path / "copy")


def test_plans_are_the_same_bytes_from_the_build_or_later_and_from_any_number_of_processes(
    small_recipe, small_dataset, copy, tmp_path
):
    built = build(small_recipe.model_copy(update={"pack": (64, 128)}), tmp_path / "built")
    pack_dataset(copy, [128])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.order.pack._WORTH_A_POOL", 0)
        later = pack_dataset(copy, [64], workers=2)
    assert digests(copy) == digests(built.folder)
    plain = json.loads((small_dataset.folder / FILE).read_text("utf-8"))
    gained = set(later.info["files"]) - set(plain["files"])
    assert gained == {path.name for path in copy.glob("*.pack-*")} and len(gained) > 8
    assert {**later.info, "files": plain["files"]} == plain
    assert later.verify() == []


def test_a_build_that_finds_its_dataset_adds_the_plans_that_are_missing(small_recipe, copy):
    assert contexts(copy) == set()
    packed_ = build(small_recipe.model_copy(update={"pack": (64,)}), copy)
    assert contexts(copy) == {64} and file_name("train", 65) in packed_.info["files"]
    before = digests(copy)
    build(small_recipe, copy)
    assert digests(copy) == before


def test_a_missing_plan_says_which_command_makes_it(copy):
    index = load_dataset(copy).index("train")
    with pytest.raises(UserError, match=r"no packing plans for a context of 32 .*: none.*luban data pack .*copy --con"):
        layout(index, 32, "best_fit")
    pack_dataset(copy, [64])
    with pytest.raises(UserError, match=r"\(of train there are plans for: 64\)"):
        layout(index, 32, "best_fit")
    (copy / "train-000001.pack-65.npy").unlink()
    with pytest.raises(UserError, match=r"(?s)cannot read .* plan .*train-000001\.pack-65\.npy.*luban data pack"):
        load_packing(index, 65)


def test_a_plan_swapped_truncated_or_of_another_dataset_is_named(copy, tmp_path):
    index = pack_dataset(copy, [64]).index("train")
    one, other = (copy / f"train-00000{number}.pack-65.npy" for number in (1, 2))
    whole = one.read_bytes()
    packing = load_packing(index, 65)
    shutil.copy(other, one)
    with pytest.raises(UserError, match=rf"{one.name} is [\d,]+ bytes long, but was written with {len(whole):,}"):
        load_packing(index, 65)
    with pytest.raises(UserError, match=rf"{one.name} is not the packing plan .*it is {other.name}\. Make the plans"):
        packing.plan(1)
    assert one.name in "\n".join(load_dataset(copy).verify())
    one.write_bytes(whole[:-4])
    with pytest.raises(UserError, match=rf"{one.name} is [\d,]+ bytes long, but was written with {len(whole):,}"):
        load_packing(index, 65)
    with pytest.raises(UserError, match=rf"{one.name} is not the packing plan .*sha256 differs"):
        packing.plan(1)
    one.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"{one.name} is not the packing plan .*sha256 differs"):
        load_packing(index, 65).plan(1)
    one.write_bytes(whole)
    load_packing(index, 65).plan(1)

    _, stranger = written(tmp_path / "stranger", LENGTHS, shard_tokens=300)
    packed(stranger, 64)
    shutil.copy(stranger.folder / file_name("train", 65), copy)
    with pytest.raises(UserError, match=r"train\.pack-65\.json lists plans of other shards"):
        load_packing(index, 65)


def test_the_identity_of_the_rows_holds_the_plan(tmp_path):
    _, index = written(tmp_path, LENGTHS, shard_tokens=300)
    packing = packed(index, CONTEXT)
    first = Order(packing.layout(), 1, 2).describe()
    assert first != Order(layout(index, CONTEXT), 1, 2).describe()
    path = tmp_path / file_name("train", CONTEXT + 1)
    said = json.loads(path.read_text("utf-8"))
    said["plans"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(said), "utf-8")
    assert Order(load_packing(index, CONTEXT + 1).layout(), 1, 2).describe() != first


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "else"}, {"plans": [{}]}, {"algorithm": "first-fit"}])
def test_a_list_of_plans_that_is_newer_or_damaged_is_refused(tmp_path, change):
    _, index = written(tmp_path, LENGTHS, shard_tokens=300)
    packed(index, CONTEXT)
    path = tmp_path / file_name("train", CONTEXT + 1)
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(UserError, match=rf"{path.name}.*luban data pack"):
        load_packing(index, CONTEXT + 1)
    path.write_text("{", "utf-8")
    with pytest.raises(UserError, match=rf"cannot read .*{path.name}"):
        load_packing(index, CONTEXT + 1)


def test_an_example_longer_than_a_row_is_refused_before_it_is_cut(tmp_path):
    _, index = written(tmp_path, [20, 20, 10, 40, 12], "examples", shard_tokens=40)
    assert len(index.shards) > 1
    with pytest.raises(UserError, match=r"has 40 tokens, .* context of at least 39, .* task\.max_tokens=33"):
        packed(index, 32)
    assert not list(tmp_path.glob("*pack*"))


def test_two_commands_dont_add_plans_at_once(copy):
    before = digests(copy)
    words = rf"another command \(process {os.getpid()} on .+\) is adding plans to"
    with locked(copy / ".packing.tmp", str), pytest.raises(UserError, match=words):
        pack_dataset(copy, [64])
    assert digests(copy) == before
    pack_dataset(copy, [64])
    assert not list(copy.glob(".*"))


def test_processes_make_the_same_plans(tmp_path):
    _, index = written(tmp_path, LENGTHS, shard_tokens=300)
    here = packed(index, CONTEXT)
    with pool(2) as executor:
        pack([index], [CONTEXT], executor, 4)
    assert load_packing(index, CONTEXT + 1) == here


def test_documents_are_traced_through_the_plan_both_ways(copy):
    dataset = pack_dataset(copy, [64])
    index = dataset.index("train")
    order = Order(layout(index, 64, "best_fit"), 3, 2)
    positions = np.arange(order.rows_per_epoch)
    rows = LocalReader(index, order, 64).rows(positions)
    tokens = {row.id: held.tolist() for row, held in dataset.documents("train")}
    pieces = {position: set() for position in positions.tolist()}
    for each in trace.documents_at([dataset], "train", order, positions):
        for position in each.positions:
            pieces[position].add(each.id)
    for slot, (starts, length) in enumerate(zip(rows.starts, rows.lengths, strict=True)):
        assert len(pieces[slot]) == len(starts)
        for begin, end in pairwise([*starts.tolist(), int(length)]):
            piece = rows.tokens[slot, begin:end].tolist()
            assert any(
                piece == tokens[name][at : at + len(piece)]
                for name in pieces[slot]
                for at in range(0, len(tokens[name]), 64)
            )
    for name in list(tokens)[::9]:
        (found,) = trace.find([dataset], "train", name)
        first, second = trace.sightings(found, [dataset], "train", order, 2 * order.rows_per_epoch)
        assert set(first.positions) == {position for position, held in pieces.items() if name in held}
        assert len(second.positions) == len(first.positions)


def test_a_remote_dataset_gives_the_same_packed_rows_and_is_not_packed_there(copy, tmp_path):
    pack_dataset(copy, [64])
    here = load_dataset(copy).index("train")
    order = Order(layout(here, 64, "best_fit"), 3, 2)
    positions = np.arange(0, order.rows_per_epoch, 7)
    expected = LocalReader(here, order, 64).rows(positions)
    with closing(Server(copy)) as server:
        dataset = load_dataset(server.url, Access(tmp_path / "cache"))
        index = dataset.index("train")
        assert layout(index, 64, "best_fit", here=False) == order.layout
        reader = StreamingReader([index], order, 64, [dataset.remote])
        try:
            rows = reader.rows(positions)
        finally:
            reader.close()
        assert fill(index, 64, "best_fit", here=False) == fill(here, 64, "best_fit")
        with pytest.raises(UserError, match="can only be read here"):
            pack_dataset(server.url, [32])
    assert np.array_equal(rows.tokens, expected.tokens) and np.array_equal(rows.lengths, expected.lengths)
    assert all(np.array_equal(one, two) for one, two in zip(rows.starts, expected.starts, strict=True))
