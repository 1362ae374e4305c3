"""How a report looks in a browser: from 400 pixels on, light and dark, with the system's fonts."""

STYLE = """
:root { --ground: #fff; --ink: #1b2330; --soft: #586273; --line: #d7dce4; --card: #f5f7f9; --plain: #8794a8;
  --bad: #b3261e; --good: #1a6e43; --unsure: #865700; --bad-ground: #fdeeec; --good-ground: #eaf6ef;
  --unsure-ground: #fdf4e0; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161b; --ink: #e5e9ef; --soft: #a3aebd; --line: #333c48;
  --card: #1a2028; --plain: #76859b; --bad: #ff8a80; --good: #6fd3a0; --unsure: #f0c265; --bad-ground: #34191a;
  --good-ground: #13291f; --unsure-ground: #302611; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; font-size: 1rem; overflow-wrap: anywhere; }
main { max-width: 76rem; margin: 0 auto; padding: 1rem clamp(0.75rem, 3vw, 2.5rem) 3rem; }
p, ul { max-width: 46rem; margin: 0.5rem 0; }
ul { padding-left: 1.25rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0.25rem 0 0.75rem; }
h2 { font-size: 1.25rem; margin: 2.25rem 0 0.5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
h4 { font-size: 0.9rem; margin: 0 0 0.5rem; }
.verdict { border-left: 0.4rem solid; border-radius: 0.4rem; padding: 1rem 1.25rem; }
.verdict p { font-size: 1.05rem; color: var(--ink); }
.verdict .kicker { font-size: 0.85rem; color: var(--soft); margin: 0; }
.bad { color: var(--bad); background: var(--bad-ground); }
.good { color: var(--good); background: var(--good-ground); }
.unsure { color: var(--unsure); background: var(--unsure-ground); }
.wide { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; vertical-align: top; padding: 0.3rem 0.8rem 0.3rem 0;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); }
th:first-child { text-align: left; color: var(--ink); font-weight: 500; }
.wide th, .wide td { white-space: nowrap; }
.wide td:last-child, .wide th:last-child { padding-right: 0; }
.wide .text { text-align: left; }
.meters { width: 100%; max-width: 60rem; }
.meters th { border: 0; width: clamp(6.5rem, 24vw, 11rem); }
.meters td { border: 0; white-space: nowrap; width: 4.5rem; padding-right: 0; }
.meters .bar { width: auto; vertical-align: middle; }
.bar svg { display: block; width: 100%; height: 0.9rem; background: var(--card); }
svg .plain { fill: var(--plain); }
svg .marked { fill: var(--bad); }
svg .limit { stroke: var(--ink); stroke-width: 2; vector-effect: non-scaling-stroke; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .frame { fill: none; stroke: var(--line); }
svg text { fill: var(--soft); font-size: 11px; text-anchor: middle; }
svg text.marked { font-weight: 700; }
.gallery { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
figure { margin: 0; padding: 0.9rem; background: var(--card); border-radius: 0.4rem; }
figure svg { display: block; width: 100%; max-width: 24rem; }
figcaption { font-size: 0.85rem; color: var(--soft); margin-top: 0.4rem; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: 0.2rem 1rem; margin: 0;
  font-size: 0.9rem; }
dt { color: var(--soft); }
dd { margin: 0; }
pre { background: var(--card); border-radius: 0.4rem; padding: 0.8rem; white-space: pre-wrap; font-size: 0.85rem; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: normal; }
details { margin: 0.8rem 0; }
summary { cursor: pointer; font-weight: 500; }
@media print { details { display: block; } .gallery { grid-template-columns: 1fr 1fr; } }
"""
