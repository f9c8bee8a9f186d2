"""The report's paper: markup that can't be forged, a style for light and dark, and a pointer over the charts.

Every string that is not `Html` is escaped where it meets markup, so a sample, a recipe or a host name can only ever be
text. The page refers to nothing outside itself, and its own content security policy has the browser enforce that: no
loads of any kind, no script but the one below, named by its digest. Without JavaScript it is complete.
"""

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence

from trainer.units import printable

VOID = frozenset({"meta", "input", "br", "path", "rect"})


class Html(str):
    """A string that is markup already."""

    __slots__ = ()


def tag(element: str, *children: object, **attributes: object) -> Html:
    """An element; children and attribute values are escaped unless they are `Html`. `class_` gives class, `data_x`
    data-x; an attribute of None or False is left out, True stands alone."""
    shown = "".join(_attribute(name, value) for name, value in attributes.items() if value not in (None, False))
    if element in VOID:
        return Html(f"<{element}{shown}/>")
    return Html(f"<{element}{shown}>{join(children)}</{element}>")


def join(children: Iterable[object]) -> Html:
    """Children one after the other; None is nothing, a list is its members."""
    return Html("".join(_escaped(child) for child in children if child is not None))


def table(head: Sequence[object], rows: Iterable[Sequence[object]], class_: str | None = None) -> Html:
    """A table that scrolls sideways where the screen is narrow. Cells that hold numbers align to the right."""
    body = [tag("tr", [tag("td", cell, class_="n" if _numeric(cell) else None) for cell in row]) for row in rows]
    columns = tag("thead", tag("tr", [tag("th", name, scope="col") for name in head])) if any(head) else None
    return tag("div", tag("table", columns, tag("tbody", body), class_=class_), class_="scroll")


def section(title: str, *children: object) -> Html:
    """A part of the page under a heading."""
    return tag("section", tag("h2", title), *children)


def details(summary: object, *children: object, opened: bool = False) -> Html:
    """What is folded away until asked for."""
    return tag("details", tag("summary", summary), *children, open=opened)


def page(title: str, body: Html) -> str:
    """The whole document."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=policy),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", title),
            tag("style", Html(STYLE)),
        ]
    )
    content = tag("body", tag("main", body), tag("script", Html(SCRIPT)))
    return f"<!doctype html>\n{tag('html', tag('head', head), content, lang='en')}\n"


def _attribute(name: str, value: object) -> str:
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(printable(str(value)))}"'


def _escaped(child: object) -> str:
    if isinstance(child, Html):
        return child
    if isinstance(child, list | tuple):
        return join(child)
    return html.escape(printable(str(child)))


def _numeric(cell: object) -> bool:
    text = str(cell).removeprefix("-")
    return not isinstance(cell, Html) and (isinstance(cell, int | float) or text[:1].isdigit())


STYLE = """
:root{color-scheme:light dark;--ink:#1c2024;--soft:#60666d;--line:#dfe2e6;--paper:#fff;--card:#f6f7f9;
--good:#1a7f45;--bad:#c0362c;--c0:#2f6fde;--c1:#d9622b;--c2:#2c9a5f;--c3:#9a4fc4;--c4:#b8860b;--c5:#0f97a5;
--c6:#d14d86;--c7:#6b7280}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#9aa1a9;--line:#343a41;--paper:#15181b;--card:#1e2226;
--good:#56c288;--bad:#f0776c;--c0:#6aa1ff;--c1:#ff965f;--c2:#5fcf95;--c3:#c58ef0;--c4:#dfb13f;--c5:#4fc6d4;
--c6:#f283b4;--c7:#a3abb5}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1060px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:18px;margin:40px 0 12px}
h3{font-size:14px;margin:0 0 2px;font-weight:600}
p{margin:6px 0;overflow-wrap:anywhere}.soft,.note{color:var(--soft)}.note{font-size:13px}
.good{color:var(--good)}.bad{color:var(--bad)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px;margin:20px 0}
.card{background:var(--card);border-radius:8px;padding:10px 12px;min-width:0}
.card b{display:block;font-size:20px;font-weight:600;line-height:1.3;overflow-wrap:anywhere}
.card span{color:var(--soft);font-size:13px;display:block;line-height:1.35}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13.5px;min-width:60%}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:500;white-space:nowrap}
td.n{font-variant-numeric:tabular-nums;white-space:nowrap}
table.facts td:first-child{color:var(--soft);white-space:nowrap}
pre{background:var(--card);border-radius:8px;padding:12px;font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,
"DejaVu Sans Mono",monospace;white-space:pre-wrap;overflow-wrap:anywhere;margin:6px 0;unicode-bidi:isolate}
pre b{font-weight:400;color:var(--soft)}
details{border-bottom:1px solid var(--line);padding:6px 0}
summary{cursor:pointer;overflow-wrap:anywhere}summary:hover{color:var(--c0)}
section>details:last-child{border:0}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:28px 28px}
.chart{min-width:0}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:13px;color:var(--soft);margin:0 0 6px;padding:0}
.legend span{display:inline-flex;align-items:center;gap:6px;min-width:0;overflow-wrap:anywhere}
.legend svg{width:22px;height:8px;flex:none;overflow:visible}
.frame{display:grid;grid-template-columns:auto 1fr;font-size:12px;color:var(--soft);
font-variant-numeric:tabular-nums}
.ys{position:relative;min-width:46px}.ys span{position:absolute;right:7px;transform:translateY(-50%);white-space:nowrap}
.ys i{visibility:hidden;padding-right:8px;font-style:normal}
.plot{position:relative;height:220px;border-left:1px solid var(--line);border-bottom:1px solid var(--line)}
.tall .plot{height:340px}
.plot>svg{position:absolute;inset:0;width:100%;height:100%;display:block}
.xs{position:relative;height:38px;grid-column:2}.xs span{position:absolute;top:4px;transform:translateX(-50%)}
.xs em{position:absolute;right:0;top:20px;font-style:normal}
.mark{position:absolute;top:2px;padding-left:4px;font-size:11px;white-space:nowrap;pointer-events:none}
.grid-line{stroke:var(--line);stroke-width:1;fill:none}
.curve{fill:none;stroke-width:1.7;stroke-linejoin:round;stroke-linecap:round}
.dots{fill:none;stroke-width:7;stroke-linecap:round}
.lost{opacity:.55;stroke-dasharray:3 4}.lost.dots{stroke-dasharray:none;opacity:.35}
.restart{stroke:var(--soft);stroke-width:1;stroke-dasharray:1 3;fill:none}
.band{fill:var(--soft);opacity:.09}
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}
.c4{stroke:var(--c4)}.c5{stroke:var(--c5)}.c6{stroke:var(--c6)}.c7{stroke:var(--c7)}
.f0{background:var(--c0)}.f1{background:var(--c1)}.f2{background:var(--c2)}.f3{background:var(--c3)}
.f4{background:var(--c4)}.f5{background:var(--c5)}.f6{background:var(--c6)}.f7{background:var(--c7)}
.axis{position:absolute;opacity:0;pointer-events:none}
.axis+label{display:inline-block;cursor:pointer;font-size:13px;padding:2px 10px;border:1px solid var(--line);
border-radius:14px;margin:0 6px 10px 0;color:var(--soft)}
.axis:checked+label{background:var(--card);color:var(--ink)}
.axis:focus-visible+label{outline:2px solid var(--c0)}
.by-labels{display:none}
.use-labels:checked~.by-labels{display:block}.use-labels:checked~.by-steps{display:none}
.bar{display:flex;height:22px;border-radius:6px;overflow:hidden;margin:10px 0;gap:1px}
.bars{display:grid;grid-template-columns:auto 1fr auto;gap:4px 12px;align-items:center;font-size:13px;
color:var(--soft);margin:10px 0}.bars .bar{margin:0}.bars .bar>div{flex-basis:0}.unknown{background:var(--line)}
.swatch{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:7px}
.tokens{font:13px/2 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.tokens span{padding:3px 1px;border-radius:3px;margin-right:2px;unicode-bidi:isolate}
.named text{font:11px ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;fill:var(--soft)}
.named{display:block}.sheet{fill:var(--card)}.cells{stroke:var(--c0);fill:none;shape-rendering:crispEdges}
.up{fill:var(--c0)}.down{fill:var(--c1)}
.maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(120px,1fr));gap:12px}.maps figure{margin:0}
.maps svg{display:block;width:100%;height:auto}.maps figcaption{color:var(--soft);font-size:12px}
.tip{position:absolute;z-index:1;pointer-events:none;background:var(--paper);border:1px solid var(--line);
border-radius:6px;padding:4px 8px;color:var(--ink);white-space:pre;line-height:1.45;box-shadow:0 1px 5px #0003}
.cursor{position:absolute;top:0;bottom:0;width:1px;background:var(--soft);pointer-events:none}
@media (max-width:600px){main{padding:16px 14px 48px}h1{font-size:22px}.tall .plot{height:260px}
.cards{grid-template-columns:repeat(2,1fr)}}
@media print{.by-labels{display:none!important}details>*{display:block}}
"""

SCRIPT = """
"use strict";
// Shows the values under the pointer; reads them back from the curves, whose box is 1000 by 1000.
for (const plot of document.querySelectorAll(".plot")) {
  const [x0, x1, y0, y1] = ["x0", "x1", "y0", "y1"].map(name => Number(plot.dataset[name]));
  const log = plot.dataset.log === "1";
  const curves = [...plot.querySelectorAll("path[data-name]")].map(path => ({
    name: path.dataset.name,
    points: [...path.getAttribute("d").matchAll(/[ML]([-\\d.]+) ([-\\d.]+)/g)].map(m => [Number(m[1]), Number(m[2])]),
  }));
  const y = v => { const f = 1 - v / 1000; return log ? y0 * Math.pow(y1 / y0, f) : y0 + f * (y1 - y0); };
  const say = v => Math.abs(v) >= 1e5 || (v && Math.abs(v) < 1e-3) ? v.toExponential(2) : String(+v.toPrecision(5));
  const tip = document.createElement("div"), cursor = document.createElement("div");
  tip.className = "tip"; cursor.className = "cursor"; tip.hidden = cursor.hidden = true;
  plot.append(cursor, tip);
  plot.addEventListener("pointerleave", () => { tip.hidden = cursor.hidden = true; });
  plot.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect(), at = 1000 * (event.clientX - box.left) / box.width;
    const near = curves.map(c => [c.name, c.points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)])
      .filter(([, p]) => Math.abs(p[0] - at) < 25);
    tip.hidden = cursor.hidden = !near.length;
    if (!near.length) return;
    const x = near.reduce((a, b) => Math.abs(b[1][0] - at) < Math.abs(a[1][0] - at) ? b : a)[1][0];
    tip.textContent = [`${plot.dataset.x} ${Math.round(x0 + x / 1000 * (x1 - x0)).toLocaleString("en")}`,
      ...near.map(([name, p]) => `${name}  ${say(y(p[1]))}`)].join("\\n");
    cursor.style.left = x / 10 + "%";
    tip.style.left = Math.max(0, Math.min(box.width - tip.offsetWidth, x / 1000 * box.width + 10)) + "px";
    tip.style.top = "18px";
  });
}
"""
