import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from data.errors import UserError
from trainer.report import write
from trainer.report_charts import Chart, Piece, Scale, Series, linear_ticks, log_ticks, render, thinned, value_scale
from trainer.report_page import Html, tag
from trainer.report_story import Story, coverage

VOID = {"meta", "input", "br"}
OUTSIDE = re.compile(
    r"https?:|//\w|\bsrc\s*=|\bhref\s*=|@import|url\s*\(|<link|<iframe|<object|<embed|<base", re.IGNORECASE
)


class Balanced(HTMLParser):
    """Fails on an element that is closed by another's end tag, or never."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(text: str) -> Balanced:
    """The page, checked to be balanced."""
    page = Balanced()
    page.feed(text)
    page.close()
    assert not page.open
    return page


def of_class(page: Balanced, name: str) -> list[dict]:
    """Attributes of the elements of one class."""
    return [attrs for _, attrs in page.seen if name in (attrs.get("class") or "").split()]


@pytest.fixture
def one(killed_run):
    """The report of the run that was killed once."""
    return write([killed_run.folder], killed_run.folder / "report.html").read_text("utf-8")


def test_the_page_is_well_formed_and_refers_to_nothing_outside(one):
    policies = [attrs["content"] for _, attrs in parsed(one).seen if "http-equiv" in attrs]
    assert not OUTSIDE.search(one)
    assert policies[0].startswith("default-src 'none';")
    assert len(one) < 100_000


def test_text_of_a_sample_or_a_note_stays_text(one):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in one
    assert "adopted &lt;b&gt;step 20&lt;/b&gt;" in one
    page = parsed(one)
    assert len([tag for tag, _ in page.seen if tag == "script"]) == 1


def test_names_from_a_recipe_and_a_host_can_not_leave_their_attribute():
    assert tag("p", 'a"><script>', title='x" onload="y') == (
        '<p title="x&quot; onload=&quot;y">a&quot;&gt;&lt;script&gt;</p>'
    )
    assert tag("p", Html("<b>ours</b>"), ["a", None, 1]) == "<p><b>ours</b>a1</p>"


def test_lost_steps_and_restarts_are_marked(one):
    page = parsed(one)
    assert {"training", "validation", "training (lost)"} <= {attrs.get("data-name") for _, attrs in page.seen}
    assert of_class(page, "restart") and of_class(page, "band")
    text = " ".join(page.text)
    assert "attempt 2" in text
    assert "21 to 35" in text
    assert "steps 21 to 35 of attempt 1" in text


def test_the_curve_is_the_lineage_and_the_lost_part_hangs_on_it(killed_run):
    pieces = Story.load(killed_run.folder).curve("train/loss", "steps")
    kept = [piece for piece in pieces if not piece.lost]
    lost = [piece for piece in pieces if piece.lost]
    assert [[x for x, _ in piece.points] for piece in kept] == [list(range(1, 61))]
    assert [[x for x, _ in piece.points] for piece in lost] == [list(range(20, 36))]


def test_what_a_fenced_attempt_wrote_too_late_counts_as_lost(fake_run):
    run = fake_run()
    run.attempt()
    run.steps(1, 10)
    first, metrics = run.path, run.metrics
    run.attempt(10, run.checkpoint(10))
    second, run.path = run.path, first
    run.metrics, metrics = metrics, run.metrics
    run.steps(11, 12)
    run.path, run.metrics = second, metrics
    run.steps(11, 20)
    story = Story.load(run.folder)
    assert story.is_lost(1, 11) and not story.is_lost(2, 11)
    assert coverage(story.lineage).exact


def test_figures_and_chapters_are_there(one):
    text = " ".join(parsed(one).text)
    for chapter in ("Loss", "Course", "Samples", "Evaluations", "Which samples made these weights", "Attempts",
                    "Where the time went", "Corpus", "Versions", "Recipe"):  # fmt: skip
        assert chapter in text
    for figure in ("Best validation loss", "2.1000", "Lost steps", "15.4k", "each read once, none left out"):
        assert figure in text
    assert "There is no dataset at" in text
    assert "num_hidden_layers: 6" in text


def test_a_loss_of_examples_is_not_shown_as_one_of_tokens(fake_run):
    run = fake_run()
    run.counts = "examples"
    run.attempt()
    run.steps(1, 10)
    text = " ".join(parsed(write([run.folder], run.folder / "report.html").read_text("utf-8")).text)
    assert "2.56k" in text and "a mean over examples" in text
    for word in ("Nats a token", "nats a token", "label tokens", "Perplexity"):
        assert word not in text
    (curve,) = Story.load(run.folder).curve("train/loss", "labels")
    assert [x for x, _ in curve.points][-1] == 2560


def test_the_corpus_chapter_tells_what_was_dropped_and_why(killed_run):
    corpus = killed_run.folder.parent / "corpus"
    corpus.mkdir()
    shown = [{"id": "a/b.py", "excerpt": "<b>x"}, {"id": "<i>.py", "excerpt": ""}]
    rule = {"documents": 25, "bytes": 1 << 20, "examples": shown}
    mended = {"documents": 3, "items": 1234, "bytes": 9, "examples": []}
    stage = {"name": "clean", "documents_in": 100, "bytes_in": 4 << 20, "documents_out": 75, "bytes_out": 3 << 20}
    counts = {"documents": 75, "tokens": 1000, "text_bytes": 3 << 20, "bytes_per_token": 3.1}
    split = {"shards": 1, "documents": 75, "tokens": 1000, "text_bytes": 3 << 20, "fingerprint": "ab"}
    info = counts | {"format": "luban-dataset", "name": "tiny", "stages": [stage | {"dropped": {"long_line": rule},
                     "changed": {"mojibake": mended}}], "tokenizer": {"vocab_size": 512}, "splits": {"train": split},
                     "sources": {"mine": counts}, "licences": {"mine": "PSF-2.0"}}  # fmt: skip
    (corpus / "dataset.json").write_text(json.dumps(info))
    text = write([killed_run.folder], killed_run.folder / "report.html").read_text("utf-8")
    words = " ".join(parsed(text).text)
    for word in (
        "long_line",
        "25.00%",
        "25.0%",
        "1 MiB",
        "a/b.py: <b>x <i>.py",
        "changed in 1,234 places",
        "PSF-2.0",
        "75 documents",
    ):
        assert word in words


def test_the_corpus_chapter_tells_of_every_source(killed_run):
    counts = {"documents": 75, "tokens": 1000, "text_bytes": 3 << 20, "bytes_per_token": 3.1}
    places = {name: str(killed_run.folder.parent / name) for name in ("web", "code", "gone")}
    for name, licence in (("web", "CC-BY-4.0"), ("code", "MIT")):
        Path(places[name]).mkdir()
        info = counts | {"name": f"set-{name}", "sources": {"mine": counts}, "licences": {"mine": licence}}
        (Path(places[name]) / "dataset.json").write_text(json.dumps(info))
    recipe = yaml.safe_load((killed_run.folder / "recipe.yaml").read_text("utf-8"))
    recipe["data"] |= {"dataset": None, "sources": {name: {"dataset": place} for name, place in places.items()},
                       "stages": [{"weights": dict.fromkeys(places, 1.0)}]}  # fmt: skip
    (killed_run.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = " ".join(parsed(write([killed_run.folder], killed_run.folder / "report.html").read_text("utf-8")).text)
    for word in ("set-web", "CC-BY-4.0", "set-code", "MIT", f"There is no dataset at {places['gone']} now"):
        assert word in text


def test_the_corpus_chapter_reads_a_dataset_that_was_really_built(killed_run, tmp_path):
    from data import settings
    from data.build.build import build
    from data.recipe import DatasetRecipe

    (tmp_path / "texts").mkdir()
    for number in range(30):
        body = "\n".join(f"The {number}th text says {number * line} of things." for line in range(30))
        (tmp_path / "texts" / f"{number:02d}.txt").write_text(body)
    source = json.dumps([{"kind": "folder", "path": str(tmp_path / "texts")}])
    recipe = settings.load(DatasetRecipe, None, [f"sources={source}", "tokenizer.vocab_size=512", "workers=1"])
    build(recipe, killed_run.folder.parent / "corpus")
    text = write([killed_run.folder], killed_run.folder / "report.html").read_text("utf-8")
    assert "There is no dataset at" not in text
    assert "30 documents" in " ".join(parsed(text).text) or "Changed and dropped, and why" in text


def test_the_proof_of_resuming_is_shown_with_its_verdict(killed_run):
    check = {"name": "weights", "compared": "61 tensors", "equal": False, "largest_difference": 0.5, "detail": "w"}
    proof = {
        "format": "luban-proof",
        "version": 1,
        "run": "demo",
        "against": "straight",
        "passed": False,
        "attempts": 2,
        "attempts_against": 1,
        "checks": [check],
    }
    (killed_run.folder / "proof.json").write_text(json.dumps(proof))
    text = " ".join(parsed(write([killed_run.folder], killed_run.folder / "r.html").read_text("utf-8")).text)
    assert "demo (2 attempt(s)) is NOT equal to straight (1 attempt(s))" in text
    assert "✗" in text and "61 tensors" in text


def test_several_runs_share_their_charts_and_show_how_their_recipes_differ(fake_run, killed_run):
    other = fake_run("wide", **{"model.hidden_size": 384, "optimizer.lr": 0.001})
    other.attempt()
    other.steps(1, 60, tilt=0.01)
    other.evaluation(60, 2.7)
    text = write([killed_run.folder, other.folder], other.folder / "both.html").read_text("utf-8")
    page = parsed(text)
    assert not OUTSIDE.search(text)
    names = {attrs.get("data-name") for _, attrs in page.seen}
    assert {"demo, training", "wide, training", "demo, validation", "wide, validation"} <= names
    words = " ".join(page.text)
    for word in ("How the recipes differ", "model.hidden_size", "fixed", "384", "optimizer.lr", "branch", "2.7000"):
        assert word in words


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_without_a_single_step_has_a_report(fake_run, begun):
    run = fake_run()
    if begun:
        run.attempt()
    text = write([run.folder], run.folder / "report.html").read_text("utf-8")
    assert "Nothing was logged." in " ".join(parsed(text).text)


def test_strange_texts_do_not_break_the_page(fake_run):
    run = fake_run(**{"evaluate.prompts": ["\x1b[2J", "</pre>"]})
    run.attempt()
    run.evaluation(1, 2.0, text="\x00\ud800\u202e]]></pre><!--")
    text = write([run.folder], run.folder / "report.html").read_text("utf-8")
    parsed(text)
    assert "\x00" not in text and "\u202e" not in text


def test_no_run_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="cannot read the recipe"):
        write([tmp_path], tmp_path / "out.html")
    with pytest.raises(UserError, match="at least one"):
        write([], tmp_path / "out.html")


def test_coverage_names_what_was_left_out_and_what_was_read_twice():
    def step(first, last, verdict="applied"):
        return {"positions": [first, last], "verdict": verdict, "step": 0}

    assert coverage([step(0, 8), step(8, 16, "skipped"), step(16, 24)]).skipped == [(8, 16)]
    assert coverage([step(0, 8), step(16, 24)]).gaps == [(8, 16)]
    assert coverage([step(0, 8), step(4, 12)]).repeated == [(4, 8)]
    assert not coverage([step(8, 16)]).exact


def test_the_chapter_on_time_has_a_bar_for_each_attempt_and_its_parts_add_up(one, killed_run):
    history = Story.load(killed_run.folder).history
    whole = history.attempts[-1].ended - history.attempts[0].start["began"]
    page = parsed(one)
    bars = of_class(page, "bar")
    assert bars[0]["style"] == "width:100.00%"
    widths = [float(attrs["style"].removeprefix("width:").removesuffix("%")) for attrs in bars[1:]]
    assert len(widths) == 2 and sum(widths) == pytest.approx(100, abs=0.1)
    titles = [attrs["title"] for _, attrs in page.seen if str(attrs.get("style", "")).startswith("flex-grow")]
    assert {"lost work: 15.2 s", "down: 14.0 s", "start-up: 6.0 s"} <= set(titles)
    grown = sum(
        float(attrs["style"].removeprefix("flex-grow:"))
        for _, attrs in page.seen
        if str(attrs.get("style", "")).startswith("flex-grow")
    )
    assert grown == pytest.approx(2 * whole, rel=0.003)  # once in all, once by attempts
    shown = float(page.text[page.text.index("Goodput") + 1].removesuffix(" %"))
    assert shown == pytest.approx(100 * 60.6 / whole, abs=0.2)  # 60 steps of a second are kept


def test_a_record_without_a_clock_is_said_to_be_unattributed(fake_run):
    run = fake_run()
    run.attempt()
    run.steps(1, 10)
    run.path.write_text(run.path.read_text().replace('"began"', '"began_not"'))
    text = " ".join(parsed(write([run.folder], run.folder / "report.html").read_text("utf-8")).text)
    assert "attempt 1 was recorded without a clock: its 10 s can't be attributed" in text
    assert "not recorded" in text


def test_thinning_keeps_every_spike_and_the_ends():
    points = [(float(x), 100.0 if x == 4321 else -50.0 if x == 777 else x % 7) for x in range(10_000)]
    kept = thinned(points, 100)
    assert len(kept) <= 404
    assert (4321.0, 100.0) in kept and (777.0, -50.0) in kept
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(kept)


def test_the_first_steps_do_not_flatten_a_curve():
    points = [(float(x), 1000.0 if x < 3 else 2.0 + 1 / (x + 1)) for x in range(600)]
    scale = value_scale(points, from_zero=False, logarithmic=True)
    assert scale.high < 4
    assert scale.low < 2.0
    drawn = render(Chart("Loss", "steps", [Series("training", 0, [Piece(points)])]))
    assert "higher values, up to 1000" in drawn


def test_a_flat_curve_and_a_single_point_can_be_drawn():
    for points in ([(0.0, 2.0)], [(0.0, 0.0), (5.0, 0.0)], [(1.0, -3.0), (2.0, -3.0)]):
        parsed(render(Chart("x", "steps", [Series("s", 0, [Piece(points)])], logarithmic=True)))


def test_ticks_are_round_and_inside():
    assert linear_ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert linear_ticks(-0.3, 617, 6) == [0, 100, 200, 300, 400, 500, 600]
    assert log_ticks(0.9, 1100, 5) == [1, 3, 10, 30, 100, 300, 1000]
    assert all(1.7 <= tick <= 9.1 for tick in log_ticks(1.7, 9.1, 5))
    assert 4 <= len(log_ticks(1.7, 9.1, 5)) <= 8
    assert Scale(1, 100, log=True).at(10) == pytest.approx(0.5)
