"""report.html: one file with everything in it, which sorts its tables by a click and is read on a phone too.

Nothing is fetched: pictures are in the file, the style and the few lines of script as well.
"""

import base64
import html
import re
import struct
from collections.abc import Sequence

from etils import epath

PANELS = 2.05  # width by height above which a figure has panels side by side
LARGE = 900  # pixels of width, above which it cannot be read at a phone's width
Picture = tuple[epath.Path, str]  # a PNG and its caption

STYLE = (
  "body{font:16px/1.5 system-ui,sans-serif;max-width:76em;margin:2em auto;padding:0 1em;color:#222}"
  "h1,h2{line-height:1.2}.table{overflow-x:auto;margin:1em 0}"
  "table{border-collapse:collapse;font-size:.9em}th,td{padding:.3em .7em;border-bottom:1px solid #ccc;"
  "text-align:left;white-space:nowrap}td:last-child{white-space:normal;min-width:12em}"
  "th{cursor:pointer;position:sticky;top:0;background:#f4f4f4}"
  "td:nth-child(2){position:sticky;left:0;background:#fff}th:nth-child(2){left:0;z-index:1}"
  "th[aria-sort=ascending]::after{content:' \\25b2'}th[aria-sort=descending]::after{content:' \\25bc'}"
  ".figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,30em),1fr));grid-auto-flow:dense;gap:1.5em}"
  "figure{margin:0;min-width:0}.wide{grid-column:1/-1}.large div{overflow-x:auto}"
  "figcaption{font-size:.9em;color:#444}img{max-width:100%;height:auto}li{overflow-wrap:anywhere}"
  "@media(max-width:40em){body{margin:1em auto;font-size:15px}.large img{max-width:none;width:45em}"
  "td:nth-child(2){white-space:normal;min-width:8em}}"
)
SCRIPT = """
document.querySelectorAll("th").forEach(function (head) {
  function sort() {
    var table = head.closest("table"), column = head.cellIndex, down = head.getAttribute("aria-sort") !== "descending";
    table.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    function key(row) { return row.cells[column].textContent; }
    var body = table.tBodies[0];
    Array.from(body.rows).sort(function (a, b) {
      var x = parseFloat(key(a)), y = parseFloat(key(b));
      if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
      var order = isNaN(x) ? key(a).localeCompare(key(b)) : x - y;
      return down ? -order : order;
    }).forEach(function (row) { body.appendChild(row); });
  }
  head.addEventListener("click", sort);
  head.addEventListener("keydown", function (event) { if (event.key === "Enter") sort(); });
});
"""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table whose columns a click on their heading sorts, largest first; it scrolls sideways where it is too wide."""
  head = "".join(f"<th scope='col' tabindex='0'>{html.escape(text)}</th>" for text in headings)
  body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in line) + "</tr>" for line in rows)
  return f"<div class='table'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def figure(path: epath.Path, caption: str) -> str:
  """A picture and its caption; one of several panels has the whole width, and a large one scrolls on a phone."""
  content, said = path.read_bytes(), html.escape(caption, quote=True)
  width, height = struct.unpack(">II", content[16:24])  # of a PNG's first chunk
  kinds = " ".join(["wide"] * (width > PANELS * height) + ["large"] * (width > LARGE))
  source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
  return f"<figure class='{kinds}'><div><img alt='{said}' src='{source}'></div><figcaption>{said}</figcaption></figure>"


def linked(text: str) -> str:
  """A line of text whose addresses can be followed."""
  return re.sub(r"(https?://[^\s<>()]+[^\s<>().,;])", r"<a href='\1'>\1</a>", html.escape(text))


def section(title: str, rows: tuple, beside: Sequence[str], pictures: Sequence[Picture]) -> str:
  """A section of the page: the table, its pictures, and what a reader must know beside them."""
  page = [f"<h2>{html.escape(title)}</h2>", table(*rows), "<div class='figures'>"]
  page += [figure(path, caption) for path, caption in pictures]
  page += ["</div>", "<ul>", *(f"<li>{linked(line)}</li>" for line in beside), "</ul>"]
  return "\n".join(page)


def whole(sections: Sequence[str], first: Sequence[str] = ()) -> str:
  """The page.

  Args:
    first: what a reader must know before all sections, a line each.
  """
  head = (
    "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Results</title>"
    f"<meta name='viewport' content='width=device-width,initial-scale=1'><style>{STYLE}</style></head>"
  )
  sorting = "A click on a heading sorts the table by it; a wide table scrolls sideways."
  hint = "".join(f"<p>{html.escape(line)}</p>" for line in (*first, sorting))
  return "\n".join([head, f"<body><h1>Results</h1>{hint}", *sections, f"<script>{SCRIPT}</script></body></html>\n"])
