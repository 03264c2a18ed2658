"""The style and the script of the report page."""

from __future__ import annotations

from bench.inference.overlays import PREDICTION, TRUTH

STYLE = f"""
main {{ max-width: 72rem; }}
h3 {{ font-size: 1.05rem; margin: 2.25rem 0 .5rem; }}
p {{ max-width: 56rem; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; margin: .75rem 0; list-style: none; }}
a {{ color: #4477aa; }}
.finding {{ font-size: 1.1rem; }}
.notes {{ color: #7a4a00; background: #fff6e5; border-left: 4px solid #e0a030; padding: .5rem 1rem .5rem 2rem; }}
svg {{ display: block; }}
svg text {{ font: 12.5px system-ui, Helvetica, Arial, sans-serif; fill: #1c2430; white-space: pre; }}
svg .tick {{ font-size: 11px; fill: #5b6472; }}
svg .heading {{ fill: #5b6472; }}
svg .patient {{ font-size: 8px; fill: #5b6472; }}
figure {{ margin: .75rem 0 1.25rem; }}
figcaption {{ max-width: 56rem; }}
.cell[data-patient] {{ cursor: pointer; }}
.cell:hover {{ stroke: #1c2430; stroke-width: 2; }}
[data-row] {{ transition: opacity .12s; }}
.lit [data-row]:not(.on) {{ opacity: .25; }}
.lit [data-row] [data-row] {{ opacity: 1; }}
th button {{ font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }}
th button:hover {{ text-decoration: underline; }}
th[aria-sort=ascending] button::after {{ content: " ↑"; }}
th[aria-sort=descending] button::after {{ content: " ↓"; }}
.board {{ white-space: nowrap; }}
.board thead th {{ vertical-align: bottom; }}
.board .words, .board tbody th {{ text-align: left; }}
.board tbody th {{ position: sticky; left: 0; background: #fff; padding-left: 0; padding-right: .5rem; }}
.board td:first-child, .board th:first-child {{ padding-left: .25rem; text-align: left; width: 2.5rem; }}
.name {{ display: inline-block; max-width: 16rem; overflow: hidden; vertical-align: bottom; }}
.name {{ text-overflow: ellipsis; white-space: nowrap; }}
.board tbody tr:hover td, .board tbody tr:hover th {{ background: #f4f6f9; }}
.groups thead th {{ min-width: 3.5rem; }}
.kinds td {{ border: 0; }}
.kinds th {{ text-align: center; border-bottom: 0; color: #5b6472; }}
.kinds th[colspan] {{ border-left: 1px solid #d9dee6; }}
.few {{ color: #8a93a0; }}
.tall {{ max-height: 28rem; overflow: auto; }}
.controls {{ display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1.25rem; margin: 1rem 0; }}
.controls select, .controls button {{ font: inherit; font-size: .9rem; padding: .2rem .5rem; max-width: 100%; }}
.controls label {{ max-width: 100%; }}
.truth-key {{ border-bottom: 3px solid {TRUTH}; }}
.prediction-key {{ border-bottom: 3px solid {PREDICTION}; }}
.gallery {{ --fill: 0; --tile: 12rem; }}
.tiles-of-slice {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(var(--tile), 45%), 1fr)); }}
.tiles-of-slice {{ gap: .6rem; }}
.tile {{ margin: 0; min-width: 0; }}
.tile svg {{ width: 100%; height: auto; background: #000; border-radius: 4px; }}
.tile figcaption {{ font-size: .8rem; line-height: 1.35; margin-top: .2rem; }}
.tile b {{ display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
.tile path {{ stroke-width: 1.5; vector-effect: non-scaling-stroke; }}
.tile path {{ fill-rule: evenodd; fill-opacity: var(--fill); }}
.tile .truth {{ stroke: {TRUTH}; fill: {TRUTH}; }}
.tile .prediction {{ stroke: {PREDICTION}; fill: {PREDICTION}; }}
.no-truth .truth, .no-prediction .prediction {{ display: none; }}
.no-outline .tile path {{ stroke: none; }}
.slice {{ font-size: .95rem; margin: 1.25rem 0 .4rem; font-weight: 600; }}
#tip {{ position: fixed; z-index: 9; pointer-events: none; background: #1c2430; color: #fff; border-radius: 4px; }}
#tip {{ padding: .25rem .55rem; font-size: .85rem; max-width: 24rem; overflow-wrap: anywhere; }}
#tip[hidden] {{ display: none; }}
@media (max-width: 40rem) {{
  dl {{ display: block; }}
  dd {{ margin-bottom: .6rem; }}
}}
@page {{ size: landscape; }}
@media print {{
  .controls, nav, noscript {{ display: none; }}
  .wide, .tall {{ overflow: visible; max-height: none; }}
  .board {{ font-size: 6.5pt; white-space: normal; }}
  .board td, .board th {{ padding-left: .3rem; }}
  svg {{ max-width: 100%; height: auto; }}
  .tile, tr {{ break-inside: avoid; }}
  rect, .tile, .notes {{ print-color-adjust: exact; }}
}}
"""


SCRIPT = r"""
"use strict";
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const parsed = id => JSON.parse(document.getElementById(id).textContent);

function append(parent, name, attributes, text) {
  const svg = ["svg", "path", "image"].includes(name);
  const child = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) child.setAttribute(key, value);
  if (text !== undefined) child.textContent = text;
  parent.append(child);
  return child;
}

// Tables: a click on a heading sorts the rows. Numbers sort by their full value, undefined ones come last.
function sort(table, column, heading) {
  const number = heading.dataset.number === "yes";
  const before = heading.getAttribute("aria-sort");
  const down = before ? before === "ascending" : number && heading.dataset.first !== "up";
  all("thead th", table).forEach(other => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => number ? parseFloat(row.cells[column].dataset.value) : row.cells[column].textContent;
  const order = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (number && (isNaN(x) || isNaN(y))) return isNaN(x) - isNaN(y);
    return (down ? -1 : 1) * (number ? x - y : x.localeCompare(y));
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
}
for (const table of all("table.board")) {
  all("thead th", table).forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => sort(table, column, heading));
  });
}

// Tooltips, and a row under the mouse is highlighted in all figures of its chapter.
const tip = document.getElementById("tip");
document.addEventListener("mousemove", event => {
  const target = event.target.closest("[data-tip]");
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip;
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8) + "px";
});
document.addEventListener("mouseover", event => {
  const row = event.target.closest("svg [data-row]");
  const chapter = row && row.closest("section");
  all("section.lit").forEach(lit => lit.classList.remove("lit"));
  if (!chapter) return;
  chapter.classList.add("lit");
  for (const mark of all("[data-row]", chapter))
    mark.classList.toggle("on", mark.dataset.row === row.dataset.row);
});

// The gallery: a patient is decoded and drawn only when it is chosen.
function gallery(root) {
  const index = parsed(root.id + "-index");
  const select = root.querySelector("select");
  const stage = root.querySelector(".stage");
  const box = name => root.querySelector(`[name=${name}]`);
  if (index.rows.length < 4) root.style.setProperty("--tile", "16rem");
  index.patients.forEach((label, at) => append(select, "option", {value: at}, label));

  function tile(parent, slice, size, name, text, outlines) {
    const figure = append(parent, "figure", {class: "tile"});
    const view = (box("near").checked && slice.near ? slice.near : [0, 0, ...size]).join(" ");
    const svg = append(figure, "svg", {viewBox: view, role: "img", "aria-label": `${name}: ${text}`});
    append(svg, "image", {href: slice.scan, width: size[0], height: size[1], preserveAspectRatio: "none"});
    for (const [kind, path] of Object.entries(outlines)) append(svg, "path", {d: path, class: kind});
    const caption = append(figure, "figcaption", {});
    append(caption, "b", {"data-tip": name}, name);
    append(caption, "span", {}, text);
  }

  function draw() {
    const patient = parsed(`${root.id}-${select.value}`);
    stage.replaceChildren();
    append(stage, "p", {}, patient.about);
    for (const slice of patient.slices) {
      append(stage, "div", {class: "slice"}, `slice ${slice.number}: ${slice.why}`);
      const row = append(stage, "div", {class: "tiles-of-slice"});
      tile(row, slice, patient.size, "scan", `slice ${slice.number}`, {});
      index.rows.forEach((name, at) => {
        const text = `slice ${slice.dice[at]} · patient ${patient.dice[at]}`;
        tile(row, slice, patient.size, name, text, {truth: slice.truth, prediction: slice.masks[at]});
      });
    }
  }

  function move(step) {
    select.value = (Number(select.value) + step + index.patients.length) % index.patients.length;
    draw();
  }
  select.addEventListener("change", draw);
  box("near").addEventListener("change", draw);
  root.querySelector(".back").addEventListener("click", () => move(-1));
  root.querySelector(".on").addEventListener("click", () => move(1));
  for (const name of ["truth", "prediction", "outline"])
    box(name).addEventListener("change", () => root.classList.toggle("no-" + name, !box(name).checked));
  box("fill").addEventListener("input", () => root.style.setProperty("--fill", box("fill").value / 100));
  root.closest("section").addEventListener("click", event => {
    const cell = event.target.closest("[data-patient]");
    if (!cell) return;
    select.value = index.cases.indexOf(cell.dataset.patient);
    draw();
    root.scrollIntoView({behavior: "smooth"});
  });
  draw();
}
all(".gallery").forEach(gallery);
"""
