"""How a page looks: its colours in both lights, and its layout from a phone's width up."""

from collections.abc import Mapping, Sequence

from seqloom.core.svg import COLOURS

_LIGHT = {
    "paper": "#ffffff", "ink": "#1b1f24", "muted": "#59626e", "rule": "#e2e5e9", "card": "#f5f6f8", "none": "#eceef1",
    "link": "#2f5fc4", "best": "#e3f1e6",
}  # fmt: skip
_DARK = {
    "paper": "#14171b", "ink": "#e6e9ed", "muted": "#9aa4b1", "rule": "#2c323a", "card": "#1c2127", "none": "#23282f",
    "link": "#8fb4ff", "best": "#1d3a28",
}  # fmt: skip
# Eight hues that stay apart for the colour-blind, in both lights.
_LINES_LIGHT = ("#2f67c9", "#d1591f", "#1f8a60", "#a8439b", "#8a6a12", "#1487a0", "#c42f47", "#6656c2")
_LINES_DARK = ("#7da7ff", "#ff9a5c", "#5fd0a0", "#e58ad8", "#dcb64f", "#5cc8de", "#ff7f8f", "#a99bff")
# From far below the median through nothing to say to far above it; then from none to all.
_DIVERGING_LIGHT = ("#2a5fb0", "#5f8fd0", "#9dbde6", "#d0def1", "#eceef1", "#f6d9c4", "#eda97e", "#dc6f42", "#b3361d")
_DIVERGING_DARK = ("#7fb0ff", "#5787d0", "#3b5f98", "#2b4164", "#23282f", "#5c3826", "#96522f", "#d1753f", "#ffa66e")
_SHARES_LIGHT = ("#eceef1", "#dbe6f5", "#c3d7f0", "#a6c4ea", "#85aee2", "#6195d7", "#427cc8", "#2b63b3", "#174a96")
_SHARES_DARK = ("#23282f", "#26364e", "#2b4469", "#325485", "#3c67a3", "#4a7cc0", "#6094da", "#80afee", "#a8ccff")


def _variables(plain: Mapping[str, str], lines: Sequence[str], diverging: Sequence[str], shares: Sequence[str]) -> str:
    named = {
        **plain,
        **{f"l{number}": colour for number, colour in enumerate(lines)},
        **{f"r{number - 4}": colour for number, colour in enumerate(diverging)},
        **{f"s{number}": colour for number, colour in enumerate(shares)},
    }
    return "".join(f"--{name}:{colour};" for name, colour in named.items())


STYLE = f"""
:root{{color-scheme:light dark;{_variables(_LIGHT, _LINES_LIGHT, _DIVERGING_LIGHT, _SHARES_LIGHT)}}}
@media(prefers-color-scheme:dark){{:root{{{_variables(_DARK, _LINES_DARK, _DIVERGING_DARK, _SHARES_DARK)}}}}}
{"".join(f".c{number}{{--c:var(--l{number})}}" for number in range(COLOURS))}
.alt{{stroke-dasharray:5 4}}
{"".join(f".r{step}{{fill:var(--r{step})}}" for step in range(-4, 5))}
{"".join(f".s{step}{{fill:var(--s{step})}}" for step in range(9))}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}}
main{{max-width:1120px;margin:auto;padding:clamp(14px,3vw,36px)}}
h1{{font-size:clamp(22px,4vw,30px);line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}}
h2{{font-size:18px;margin:36px 0 10px}}
p{{margin:6px 0;max-width:75ch}}
.about{{color:var(--muted)}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px;margin:20px 0}}
.tiles div{{background:var(--card);border-radius:8px;padding:10px 12px}}
.tiles dt{{color:var(--muted);font-size:13px}}
.tiles dd{{margin:0;font-size:19px;font-weight:600;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}}
.grid{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:22px}}
figure{{margin:0 0 8px;min-width:0}}
figcaption{{margin-bottom:4px}}
figcaption span{{color:var(--muted);font-size:13px}}
.legend{{display:flex;flex-wrap:wrap;gap:2px 16px;list-style:none;margin:2px 0;padding:0;font-size:13px}}
.legend li::before{{content:"";display:inline-block;width:14px;height:3px;
border-radius:2px;background:var(--c);margin-right:6px;vertical-align:middle}}
.legend li.alt::before{{background:linear-gradient(90deg,var(--c) 40%,transparent 40% 60%,var(--c) 60%)}}
.if-narrow{{display:none}}
@media(max-width:640px){{.if-wide{{display:none}}.if-narrow{{display:block}}}}
.choice input{{position:absolute;opacity:0}}
.choice label{{display:inline-block;padding:2px 10px;margin:2px 4px 6px 0;border:1px solid var(--rule);
border-radius:99px;font-size:13px;cursor:pointer}}
.choice input:checked+label{{background:var(--ink);color:var(--paper);border-color:var(--ink)}}
.choice input:focus-visible+label{{outline:2px solid var(--link);outline-offset:2px}}
.choice .panes>div{{display:none}}
{",".join(f".choice input:nth-of-type({n}):checked~.panes>:nth-child({n})" for n in (1, 2, 3))}{{display:block}}
.scroll{{overflow-x:auto}}
table{{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}}
th,td{{padding:5px 10px;text-align:left;border-bottom:1px solid var(--rule);vertical-align:top}}
thead th{{color:var(--muted);font-weight:500;font-size:13px}}
tr>:first-child{{padding-left:0}}
tbody th{{font-weight:500}}
td.best{{background:var(--best)}}
.strips{{width:100%;font-size:12px}}
.strips th,.strips td{{padding:2px 8px 2px 0;border:0;vertical-align:middle;white-space:nowrap}}
.strips .wide{{width:65%;min-width:140px}}
@media(max-width:640px){{.strips tbody th{{white-space:normal;overflow-wrap:anywhere;min-width:130px}}
.strips .wide{{min-width:90px}}}}
.key{{color:var(--muted);font-size:13px}}
.key svg{{width:120px;height:10px;vertical-align:middle;margin:0 4px}}
details{{border-top:1px solid var(--rule);margin-top:14px}}
summary{{cursor:pointer;padding:8px 0}}
summary h2{{display:inline;margin:0;font-size:16px}}
pre{{background:var(--card);border-radius:8px;padding:12px;overflow-x:auto;
font:13px/1.45 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere}}
mark{{background:var(--best);color:inherit}}
"""
