"""How a report looks, on a screen, on a telephone and on paper."""

STYLE = """
:root { --ink: #1b2430; --muted: #5b6675; --line: #e3e7ec; --paper: #fff; --back: #f5f7f9; --good: #0072b2;
  --bad: #b84a00; color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  "Helvetica Neue", Arial, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 32px; }
header { margin-bottom: 20px; }
.kicker { margin: 0; color: var(--muted); font-size: 13px; letter-spacing: .08em; text-transform: uppercase; }
h1 { margin: 2px 14px 0 0; font-size: clamp(26px, 5vw, 38px); line-height: 1.15; letter-spacing: -.02em;
  display: inline-block; vertical-align: middle; }
.badge { display: inline-block; vertical-align: middle; margin: 6px 0 0; padding: 3px 14px; border-radius: 99px;
  font-size: 15px; font-weight: 600; color: #fff; background: var(--good); }
.badge.bad { background: var(--bad); }
.lead { margin: 6px 0 0; color: var(--muted); }
.figures { display: flex; flex-wrap: wrap; gap: 12px; }
.figures figure { margin: 0; flex: 1 1 200px; max-width: 300px; }
.figures img { width: 100%; height: auto; display: block; border-radius: 4px; }
.figures figcaption { margin-top: 4px; font-size: 12px; color: var(--muted); }
.strip { margin: 0 0 8px; }
.strip img { display: block; height: auto; border-radius: 4px; }
.strip figcaption { margin-top: 2px; font-size: 12px; color: var(--muted); }
.banner { margin: 12px 0 0; padding: 8px 14px; border-left: 4px solid var(--bad); background: #fdf1e7;
  font-weight: 600; }
.side { margin: 4px 0; }
.keys { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 1px; background: var(--line);
  border: 1px solid var(--line); border-radius: 10px; overflow: hidden; margin: 16px 0; }
.key { margin: 0; padding: 14px 16px; background: var(--paper); }
.key dt { color: var(--muted); font-size: 13px; }
.key dd { margin: 0; font-size: 27px; line-height: 1.25; font-weight: 650; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.key .unit { font-size: 14px; font-weight: 500; color: var(--muted); letter-spacing: 0; }
.key .below { font-size: 12.5px; font-weight: 400; color: var(--muted); letter-spacing: 0; white-space: normal; }
.verdict { margin: 0 0 20px; padding: 10px 16px; border-left: 4px solid var(--good); background: var(--paper);
  font-size: 14.5px; border-radius: 0 8px 8px 0; }
.verdict.bad { border-color: var(--bad); }
.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px; margin-bottom: 18px; }
.grid > :last-child:nth-child(odd) { grid-column: 1 / -1; }
.grid.one { grid-template-columns: minmax(0, 1fr); }
.grid.one svg { max-width: 560px; margin: 0 auto; }
.suspect { color: var(--bad); }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px 14px;
  min-width: 0; margin-bottom: 0; }
main > .card { margin-bottom: 18px; }
h2 { margin: 0 0 10px; font-size: 17px; line-height: 1.3; letter-spacing: -.005em; }
.note { margin: 8px 0 0; color: var(--muted); font-size: 13.5px; }
svg { display: block; width: 100%; height: auto; font-size: 12.5px; font-family: inherit;
  font-variant-numeric: tabular-nums; }
svg .halo { paint-order: stroke; stroke: #fff; stroke-width: 4px; stroke-linejoin: round; }
.table { margin-top: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--muted); font-size: 13px; }
th, td { padding: 4px 8px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead:has(th:empty:first-child) { display: none; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; padding-right: 0; padding-left: 8px; }
.swatch { display: inline-block; width: .72em; height: .72em; border-radius: 2px; margin-right: .5em; }
.facts { display: grid; grid-template-columns: minmax(88px, max-content) minmax(0, 1fr); gap: 4px 16px; margin: 0;
  font-size: 14px; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; }
footer { color: var(--muted); font-size: 13px; margin-top: 24px; }
@media screen and (max-width: 760px) {
  main { padding: 22px 14px; }
  .grid { grid-template-columns: minmax(0, 1fr); }
  .card { padding: 14px 14px 12px; }
  .keys { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .key dd { font-size: 22px; }
  svg { font-size: 14px; }
}
@media print {
  @page { margin: 14mm; }
  body { background: #fff; font-size: 11pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  .grid, .keys { gap: 10px; margin-bottom: 10px; }
  .keys { gap: 1px; grid-template-columns: repeat(6, minmax(0, 1fr)); }
  .key { padding: 8px 10px; }
  .key dd { font-size: 15pt; }
  .key .unit, .key .below, .key dt, .note, th { font-size: 8pt; }
  .card { padding: 10px 12px 8px; }
  .verdict, table, .facts { font-size: 9pt; }
  svg { font-size: 14px; }
  .card, .keys, .verdict, header { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""
