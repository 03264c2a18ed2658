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
    const shown = all("[name=structure]", root).map(each => each.checked);
    for (const [kind, paths] of Object.entries(outlines))
      paths.forEach((path, at) => {
        if (shown[at] ?? true) append(svg, "path", {d: path, class: `${kind} s${at % 7}`});
      });
    const caption = append(figure, "figcaption", {});
    append(caption, "b", {"data-tip": name}, name);
    text.split("\n").forEach(part => append(caption, "span", {}, part));
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
        const each = patient.structures[at] ? `\n${patient.structures[at]}` : "";
        const text = `slice ${slice.dice[at]} · patient ${patient.dice[at]}${each}`;
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
  all("[name=structure]", root).forEach(each => each.addEventListener("change", draw));
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
