"""The page around the report: markup and style, no script, no external resource."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root { color-scheme: light dark; --ground: #fbfbf9; --card: #ffffff; --ink: #1c1c1a; --ink-2: #5a5a55; --grid: #e4e4de;
  --series-1: #2a78d6; --series-2: #d9662b; --series-3: #16856b; --series-4: #7d5bc6; --warn: #8a4b00; --warn-ground: #fff3e0; }
@media (prefers-color-scheme: dark) { :root { --ground: #161615; --card: #1f1f1d; --ink: #f1f1ee; --ink-2: #b1b1a9; --grid: #363632;
  --series-1: #5b9ef0; --series-2: #f08a52; --series-3: #3fbf9f; --series-4: #a98bef; --warn: #ffc37a; --warn-ground: #33260f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 20px 64px; max-width: 1080px; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 0 0 12px; }
h3 { font-size: 1rem; margin: 18px 0 6px; } h4 { font-size: .9rem; font-weight: 600; margin: 12px 0 2px; color: var(--ink-2); }
header p { color: var(--ink-2); margin: 4px 0 0; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--grid); border-radius: 10px; padding: 16px 18px; margin-top: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 14px; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.2; } .tile span { color: var(--ink-2); font-size: .88rem; }
figure { margin: 0; } img { display: block; width: 100%; height: auto; border-radius: 4px; background: #8884; }
figcaption { font-size: .8rem; color: var(--ink-2); margin-top: 2px; }
.strip { display: flex; gap: 8px; overflow-x: auto; padding-bottom: 6px; } .strip figure { flex: 0 0 min(200px, 44vw); }
.row { display: grid; gap: 8px; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); margin-bottom: 10px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--grid); vertical-align: top; min-width: 4.5rem; }
thead th { color: var(--ink-2); font-weight: 600; } tbody th { font-weight: 400; } td { overflow-wrap: break-word; }
details td { overflow-wrap: anywhere; }
.note, .missing { color: var(--ink-2); font-size: .88rem; margin: 8px 0 0; }
.warnings { margin: 0; padding: 10px 14px 10px 30px; background: var(--warn-ground); color: var(--warn); border-radius: 6px; }
details { border-bottom: 1px solid var(--grid); padding: 6px 0; } summary { cursor: pointer; } summary small { color: var(--ink-2); }
.charts { display: grid; gap: 4px 24px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.chart { width: 100%; max-width: 520px; height: auto; display: block; } .chart text { fill: var(--ink-2); font-size: 12px; }
:focus-visible { outline: 2px solid var(--series-1); outline-offset: 2px; border-radius: 4px; }
.chart .grid { stroke: var(--grid); } .chart polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.s1 { stroke: var(--series-1); } .s2 { stroke: var(--series-2); } .s3 { stroke: var(--series-3); } .s4 { stroke: var(--series-4); }
.b1 { fill: var(--series-1); } .b2 { fill: var(--series-2); }
.legend { display: flex; flex-wrap: wrap; gap: 14px; margin: 4px 0 0; font-size: .85rem; color: var(--ink-2); }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; vertical-align: -1px; }
.k1 { background: var(--series-1); } .k2 { background: var(--series-2); } .k3 { background: var(--series-3); }
.k4 { background: var(--series-4); }
@media (max-width: 560px) { body { padding: 14px 10px 40px; } section { padding: 12px; }
  .row { grid-template-columns: repeat(min(var(--columns), 2), minmax(0, 1fr)); } }
</style></head><body><header><h1>{title}</h1><p>{subtitle}</p></header><main>{body}</main></body></html>
"""
