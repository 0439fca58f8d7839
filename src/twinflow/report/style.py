"""The page's style sheet. Serif for what is read, sans-serif for what is looked up; one accent colour."""

STYLE = """
:root {
  --paper: #fdfcf9; --raised: #f5f3ed; --ink: #1d1b18; --soft: #6d675e; --rule: #dfdbd1;
  --series-0: #98917f; --series-1: #0b6b63; --series-2: #b4551f; --series-3: #3b5ba5; --series-4: #8a3f73;
  --series-5: #7d7a1c; --accent: var(--series-1); --wrong: #b3362b;
  --shade: rgb(29 27 24 / .22);
  --box-0: #ffe14d; --box-1: #6fe3ff; --box-2: #ff9ad5; --box-3: #b8ff7a;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Source Serif 4", Charter, Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #161513; --raised: #201f1c; --ink: #ece8df; --soft: #a09989; --rule: #37342f;
    --series-0: #8d8675; --series-1: #55bfae; --series-2: #e0935c; --series-3: #8fa9e6; --series-4: #d38fbd;
    --series-5: #c6c25a; --wrong: #ee8175; --shade: rgb(0 0 0 / .75);
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1.0625rem/1.55 var(--serif); }
main, footer { max-width: 66rem; margin: 0 auto; padding: 0 clamp(1.1rem, 4vw, 3rem); }
header { padding: clamp(2.5rem, 7vw, 5.5rem) 0 0; }
.kicker, h2, figcaption, dt, dd, th, td, .mark, summary, footer { font-family: var(--sans); }
.kicker { margin: 0 0 1.4rem; font-size: .8rem; letter-spacing: .02em; color: var(--soft); }
h1 { margin: 0; max-width: 21em; font-size: clamp(1.75rem, 4.6vw, 2.9rem); line-height: 1.14; font-weight: 500;
  letter-spacing: -.015em; text-wrap: balance; overflow-wrap: anywhere; }
.lead { margin: 1.2rem 0 0; max-width: 40em; color: var(--soft); font-size: 1.15rem; }
section { margin-top: clamp(2.8rem, 6vw, 4.5rem); }
h2 { margin: 0 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--ink); font-size: .95rem; font-weight: 650; }
.note { margin: 0 0 1.5rem; max-width: 46em; color: var(--soft); font-size: .95rem; }
.note b { font-weight: 600; color: var(--ink); }

.warning { margin: 1.2rem 0 0; max-width: 46em; padding: .7rem 0 .7rem 1rem; border-left: 3px solid var(--wrong);
  color: var(--wrong); font: .92rem/1.45 var(--sans); overflow-wrap: anywhere; }

.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 1.6rem 2rem;
  margin: clamp(2rem, 5vw, 3.2rem) 0 0; }
.figures dt { font: 500 clamp(2rem, 5vw, 2.7rem)/1 var(--serif); letter-spacing: -.02em;
  font-variant-numeric: lining-nums; }
.figures div:first-child dt { color: var(--accent); }
.figures dd { margin: .55rem 0 0; font-size: .9rem; line-height: 1.4; }
.figures dd span { display: block; color: var(--soft); font-size: .82rem; }

.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.8rem 1.8rem; }
.card { margin: 0; break-inside: avoid; }
.tiles { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: 3px; }
.tile { display: block; }
.tile img { display: block; width: 100%; height: auto; background: var(--raised); }
.pixelated { image-rendering: pixelated; }
.missing { display: grid; place-items: center; aspect-ratio: 1; background: var(--raised); color: var(--soft);
  font: .7rem var(--sans); }
.tile { min-width: 0; }
.mark { display: flex; align-items: baseline; justify-content: space-between; gap: .3em;
  padding: .25rem .1rem 0; font-size: .7rem; line-height: 1.4; color: var(--soft); font-variant-numeric: tabular-nums; }
.mark span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.mark .nfe { flex: 1 0 auto; }
.mark b { font-weight: 600; line-height: 1; }
.chosen .mark span { color: var(--accent); }
.right .mark b { color: var(--accent); }
.wrong .mark b { color: var(--wrong); }
.card figcaption { padding: .2rem .1rem 0; font: italic .95rem/1.35 var(--serif); }
details { margin-top: 1.6rem; }
details .cards { margin-top: 1.4rem; }
summary { cursor: pointer; width: fit-content; font-size: .88rem; color: var(--accent); }
summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; }
.every details { margin-top: .8rem; }
h3 { margin: 1.6rem 0 .8rem; font: 500 .88rem var(--sans); color: var(--soft); }
.failures { display: grid; grid-template-columns: repeat(auto-fill, minmax(12.5rem, 1fr)); gap: 1.6rem 1.4rem; }
.failures figure { margin: 0; break-inside: avoid; }
.seen { position: relative; }
.seen img { display: block; width: 100%; height: auto; background: var(--raised); }
.seen svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: hidden; }
.seen rect { fill: none; stroke-width: 1.1; }
.seen .label { stroke: none; }
.seen text { font: 600 5.6px var(--sans); fill: #1d1b18; }
.failures figcaption { padding: .35rem .1rem 0; font-size: .78rem; line-height: 1.4; color: var(--soft); }
.failures figcaption span { display: block; overflow-wrap: anywhere; }
.failures i { display: block; font: italic .95rem/1.35 var(--serif); color: var(--ink); }

.scroll { overflow-x: auto; margin: 0 calc(-1 * clamp(1.1rem, 4vw, 3rem));
  padding: 0 clamp(1.1rem, 4vw, 3rem);
  /* A shadow where columns go on beyond the edge: the paper that hides it at the end moves with the table. */
  background: linear-gradient(to left, var(--paper) 40%, transparent) right / 3.5rem 100% no-repeat local,
    linear-gradient(to left, var(--shade), transparent) right / 1.1rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: lining-nums tabular-nums; }
.scores { width: 100%; font-size: .88rem; line-height: 1.25; }
.scroll + .scroll { margin-top: 2.2rem; }
.scores.few { width: auto; min-width: min(100%, 30rem); }
.scores.few th, .scores.few td { padding-left: 1.6rem; }
.scores.few th:first-child { padding-left: 0; }
.scores th, .scores td { padding: .5rem 0 .5rem .9rem; text-align: right; vertical-align: top; white-space: nowrap; }
.scores th[scope=row], .scores th:first-child { position: sticky; left: 0; padding-left: 0; padding-right: .6rem;
  text-align: left; font-weight: 500; background: var(--paper); }
.scores thead th { vertical-align: bottom; padding-top: 0; font-size: .76rem; font-weight: 500; color: var(--soft);
  white-space: normal; border-bottom: 1px solid var(--rule); }
.scores tr.first ~ tr.first > * { border-top: 1px solid var(--rule); }
.scores tbody tr:last-child > * { border-bottom: 1px solid var(--rule); }
.scores small { display: block; color: var(--soft); font-size: .72rem; }
.scores b { font-weight: 700; }
.scores .trained > * { color: var(--accent); }
.again { opacity: 0; }
.wall { font-size: .72rem; margin-top: 1rem; }
.wall th { padding: .2rem .5rem .2rem 0; text-align: left; font-weight: 500; color: var(--soft); min-width: 4.6rem; }
.wall th[scope=row] { position: sticky; left: 0; width: 11rem; min-width: 8rem; background: var(--paper);
  font: italic .82rem/1.25 var(--serif); color: var(--ink); }
.wall td { padding: 2px; width: 4.6rem; }
.wall .mark { justify-content: flex-end; padding: 0; line-height: 1.1; }

.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 2rem 3rem; }
.plot, .grids figure { margin: 0; break-inside: avoid; }
.plot { max-width: 34rem; }
.plot figcaption { margin-bottom: .5rem; font-size: .88rem; color: var(--ink); overflow-wrap: anywhere; }
.plot svg { display: block; width: 100%; height: auto; overflow: visible; }
.plot svg text { font-variant-numeric: tabular-nums; }
.grids { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1.5rem; }
.grids img { width: 100%; }

.protocol dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: .9rem 2rem;
  margin: .8rem 0 1.8rem; }
.protocol dt { font-size: .76rem; color: var(--soft); }
.protocol dd { margin: .1rem 0 0; font-size: .92rem; overflow-wrap: anywhere; }
.protocol div:has(code) { grid-column: 1 / -1; }
code { font: .86em/1.5 var(--mono); }
footer { padding-top: 2.5rem; padding-bottom: 3.5rem; font-size: .8rem; color: var(--soft); }

@media (max-width: 34rem) {
  body { font-size: 1rem; }
  .lead { font-size: 1.05rem; }
  .figures { grid-template-columns: 1fr 1fr; gap: 1.5rem 1.2rem; }
  .cards { grid-template-columns: 1fr; }
  .failures { grid-template-columns: 1fr 1fr; gap: 1.4rem 1rem; }
  .protocol dl { grid-template-columns: 1fr 1fr; gap: .8rem 1.2rem; }
}
@media print {
  @page { margin: 16mm 15mm; }
  :root { --paper: #fff; --raised: #f2f2f2; --ink: #000; --soft: #555; --rule: #ccc; --series-0: #8f8a7d;
    --series-1: #0b6b63; --series-2: #b4551f; --series-3: #3b5ba5; --series-4: #8a3f73; --series-5: #7d7a1c;
    --wrong: #b3362b; }
  html { font-size: 8.5pt; }
  body { font-size: 9.5pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  header { padding-top: 0; }
  h1 { font-size: 21pt; }
  .figures { grid-template-columns: repeat(4, 1fr); }
  h2, h3, .note { break-after: avoid; }
  section { margin-top: 8mm; }
  .cards { grid-template-columns: repeat(3, 1fr); gap: 5mm; }
  .plots { grid-template-columns: 1fr 1fr; }
  .scroll { overflow: visible; margin: 0; padding: 0; background: none; }
  .scores { font-size: 7pt; }
  .scores small, .scores thead th { font-size: 6pt; }
  .scores th, .scores td, .scores th[scope=row] { padding: .35rem 0 .35rem 1.2mm; position: static; }
  .scores tr, .wall tr { break-inside: avoid; }
  .failures { grid-template-columns: repeat(4, 1fr); gap: 5mm; }
  .wall th[scope=row] { position: static; }
  details:not([open]) { display: none; }
  main, footer { max-width: none; padding-left: 0; padding-right: 0; }
}
"""
