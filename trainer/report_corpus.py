"""The report's chapter on the corpus: of each dataset, what came in, what each stage dropped and why, what was left."""

from collections.abc import Iterator, Mapping
from typing import Any

from data.build.account import entries
from trainer.report_page import Html, details, section, table, tag
from trainer.report_story import Story
from trainer.units import short, size


def chapter(story: Story) -> Html:
    several = len(story.datasets) > 1
    parts: list[Html | None] = []
    for name, info in story.datasets.items():
        parts.append(tag("h3", name, style="margin-top:28px") if several else None)
        place = story.recipe.data.places[name]
        gone = tag("p", f"There is no dataset at {place} now.", class_="note")
        parts += [gone] if info is None else _dataset(info)
    return section("Corpus", *parts)


def _dataset(info: Mapping[str, Any]) -> list[Html | None]:
    held = f"{info['documents']:,} documents, {size(info['text_bytes'])} of text, {short(info['tokens'])} tokens"
    tokenizer = info.get("tokenizer", {})
    shape = f"{info['bytes_per_token']:.2f} bytes a token, {tokenizer.get('vocab_size', 0):,} pieces"
    about = f"{info['name']}: {held}, {shape}."
    licences = info.get("licences", {})
    sources = [
        [name, f"{each['documents']:,}", size(each["text_bytes"]), short(each["tokens"]), licences.get(name, "")]
        for name, each in info.get("sources", {}).items()
    ]
    splits = [
        [name, f"{each['documents']:,}", size(each["text_bytes"]), short(each["tokens"]), each["shards"]]
        for name, each in info.get("splits", {}).items()
    ]
    languages = [
        [name, f"{each['documents']:,}", size(each["text_bytes"]), short(each["tokens"])]
        for name, each in info.get("languages", {}).items()
    ]
    return [
        tag("p", about),
        table(["stage", "documents in", "text in", "documents out", "text out", "dropped"], _stages(info)),
        tag("h3", "Changed and dropped, and why", style="margin-top:18px"),
        table(["stage", "rule", "what", "documents", "of those in", "text", "such as"], _rules(info)),
        details("Languages", table(["language", "documents", "text", "tokens"], languages)) if languages else None,
        details("Sources and splits", table(["source", "documents", "text", "tokens", "licence"], sources),
                table(["split", "documents", "text", "tokens", "shards"], splits)),
    ]  # fmt: skip


def _stages(info: Mapping[str, Any]) -> Iterator[list[object]]:
    for stage in info.get("stages", []):
        gone = stage["documents_in"] - stage["documents_out"]
        yield [
            stage["name"],
            f"{stage['documents_in']:,}",
            size(stage["bytes_in"]),
            f"{stage['documents_out']:,}",
            size(stage["bytes_out"]),
            f"{gone / max(1, stage['documents_in']):.1%}" if gone > 0 else "",
        ]


def _rules(info: Mapping[str, Any]) -> Iterator[list[object]]:
    for entry in entries(info.get("stages", [])):
        such_as = [tag("div", example) for example in entry.examples]
        count = (f"{entry.documents:,}", f"{entry.share:.2%}", size(entry.bytes))
        yield [entry.stage, entry.rule, entry.what, *count, such_as]
