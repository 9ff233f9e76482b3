"""Colours and style sheet of the reports.

Series are a blue and an orange beside a neutral, apart for every kind of colour vision, and each
has a marker of its own as well. Everything follows the reader's light or dark preference.
"""

from __future__ import annotations

__all__ = ["COLOURS", "CSS"]

COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#f6f7f9", "#0e1116"),
    "card": ("#ffffff", "#171b22"),
    "ink": ("#161a20", "#e8eaee"),
    "muted": ("#5d6673", "#98a2b0"),
    "line": ("#e3e6eb", "#2b313b"),
    "teacher": ("#4a5568", "#b6c0d0"),
    "student": ("#0a6ac2", "#58a8f5"),
    "control": ("#d4640c", "#f29b52"),
    "fourth": ("#00806a", "#3cc7ab"),
    "fifth": ("#b0408f", "#e58bcb"),
    "good": ("#0b7a4b", "#4cc38a"),
    "bad": ("#b42318", "#ff8b7e"),
    "doubt": ("#8a6100", "#e3b341"),
}
"""CSS variable → colour on light and on dark paper."""


def _variables(index: int) -> str:
    return "".join(f"--{name}:{pair[index]};" for name, pair in COLOURS.items())


CSS = (
    f":root{{color-scheme:light dark;{_variables(0)}}}"
    f"@media(prefers-color-scheme:dark){{:root{{{_variables(1)}}}}}"
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);-webkit-font-smoothing:antialiased;
 --font:Inter,"Segoe UI",system-ui,-apple-system,"Helvetica Neue",Roboto,"Liberation Sans",Arial,
  sans-serif;
 font:15px/1.55 var(--font)}
main{max-width:1120px;margin:0 auto;padding:40px 28px 64px}
header{margin-bottom:26px}
.eyebrow{color:var(--muted);font-size:12.5px;font-weight:600;letter-spacing:.07em;
 text-transform:uppercase;margin:0 0 12px;display:flex;gap:12px;align-items:center;flex-wrap:wrap}
h1{font-size:clamp(26px,3.6vw,38px);line-height:1.16;letter-spacing:-.022em;font-weight:700;margin:0;
 max-width:24em;text-wrap:balance}
h1 b{color:var(--student);font-weight:700}
.lead{color:var(--muted);font-size:16.5px;max-width:52em;margin:14px 0 0}
h2{font-size:19px;letter-spacing:-.01em;margin:0 0 4px}
section{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:22px 24px;
 margin:0 0 18px;min-width:0}
section>p.note{color:var(--muted);margin:0 0 14px;max-width:68em}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:18px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(178px,1fr));gap:14px;
 margin:0 0 18px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:16px 18px}
.tile .value{font-size:29px;font-weight:700;letter-spacing:-.025em;line-height:1.15;
 font-variant-numeric:tabular-nums;white-space:nowrap}
.tile .label{font-weight:600;font-size:13.5px;margin-top:5px}
.tile .detail{color:var(--muted);font-size:12.5px;line-height:1.4;margin-top:2px}
.pill{display:inline-block;border-radius:99px;padding:2px 11px;font-size:12.5px;font-weight:700;
 letter-spacing:.02em;text-transform:none;color:var(--tone);
 background:color-mix(in srgb,var(--tone) 13%,transparent)}
.reasons{margin:8px 0 0;padding-left:1.15em}
.reasons li{margin:3px 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:9px 12px;border-bottom:1px solid var(--line);vertical-align:top}
th:first-child,td:first-child{text-align:left;padding-left:2px}
thead th{color:var(--muted);font-size:12.5px;font-weight:600;white-space:nowrap}
tbody tr:last-child>*{border-bottom:0}
tbody th{font-weight:600;white-space:nowrap}
td small{display:block;color:var(--muted);font-size:12px;white-space:nowrap}
td.best{font-weight:700}
td.best small{font-weight:400}
.legend{display:flex;flex-wrap:wrap;gap:6px 20px;margin:8px 0 6px;font-size:13.5px;color:var(--ink)}
.legend span{display:inline-flex;align-items:center;gap:7px}
.legend svg{width:20px;height:12px;flex:none}
figure{margin:6px 0 0}
figure>svg{display:block;width:100%;height:auto}
figcaption{color:var(--muted);font-size:13px;line-height:1.5;margin-top:10px;max-width:72em}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(104px,1fr));gap:14px;
 margin-top:10px}
.gallery figure{margin:0}
.gallery figure>svg{border-radius:8px;background:color-mix(in srgb,var(--ink) 5%,transparent)}
.gallery figcaption{font-size:12px;margin-top:5px;line-height:1.4}
.wrong{color:var(--bad);font-weight:600}
.settings{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:0 32px;
 margin:6px 0 0}
.settings div{display:flex;justify-content:space-between;gap:14px;padding:6px 0;
 border-bottom:1px solid var(--line);font-size:13.5px;min-width:0}
.settings dt{color:var(--muted)}
.settings dd{margin:0;font-weight:550;text-align:right;overflow-wrap:anywhere;
 font-variant-numeric:tabular-nums}
h3{font-size:14px;margin:20px 0 2px}
code{font:13px ui-monospace,"Cascadia Mono",Menlo,"Liberation Mono",monospace}
footer{color:var(--muted);font-size:12.5px;margin-top:26px;max-width:72em}
@media(max-width:560px){main{padding:24px 14px 48px}.pair{grid-template-columns:1fr}
 section{padding:18px 16px}}
@media print{body{background:#fff}section,.tile{break-inside:avoid}}
"""
)
