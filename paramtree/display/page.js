(() => {
"use strict";
const BARS = "\u00a0▁▂▃▄▅▆▇█", RECORD = 36, PALE = [247, 247, 247];
const SEQUENTIAL = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const DIVERGING = [[5, 48, 97], [67, 147, 195], PALE, [214, 96, 77], [103, 0, 31]];
const BROKEN = [255, 0, 255];

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
function number(x) {
  const size = Math.abs(x);
  if (Number.isNaN(x)) return "nan";
  if (size >= 999.5 && size < 999999.5) return x.toLocaleString("en", {maximumFractionDigits: 0});
  if (size >= 999999.5 || (size && size < 1e-4)) return x.toExponential(2).replace(/\.?0*e\+?/, "e");
  return String(Number(x.toPrecision(3)));
}
const percent = x => (x === 0 || x >= .0995 ? Math.round(100 * x) : Number((100 * x).toPrecision(2))) + "%";
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));

/* The patterns of tree.select: names between dots, * within a name, ** for any number of names. */
function like(pattern, name) {
  const [first, ...parts] = pattern.split("*");
  if (!parts.length) return name === first;
  const tail = parts.pop();
  if (!name.startsWith(first) || name.length < first.length + tail.length) return false;
  let at = first.length;
  const end = name.length - tail.length;
  for (const part of parts) {
    const found = name.indexOf(part, at);
    if (found < 0 || found + part.length > end) return false;
    at = found + part.length;
  }
  return name.endsWith(tail);
}
function matches(pattern, path, exact) {
  if (!pattern.length) return true;
  if (pattern[0] === "**" && !exact) {
    const rest = pattern.slice(1);
    return !rest.length || path.some((_, i) => matches(rest, path.slice(i), exact));
  }
  return path.length > 0 && (exact ? pattern[0] === path[0] : like(pattern[0], path[0]))
    && matches(pattern.slice(1), path.slice(1), exact);
}
function parse(text) {  /* a pattern, or a tuple of names as Python writes it */
  text = text.trim();
  if (!/^\(.*\)$/.test(text)) return [text.split("."), false];
  const names = [];
  const rest = text.slice(1, -1).replace(/\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')\s*(,|$)/g, (_, a, b) => {
    names.push((a ?? b).replace(/\\(.)/g, "$1"));
    return "";
  });
  return [rest.trim() || !names.length ? ["(unreadable)"] : names, true];
}

function start(root) {
  if (root.dataset.ready) return;
  root.dataset.ready = "1";
  const names = JSON.parse(root.dataset.names), top = root.querySelector(".pt-tree");
  const leaves = [...top.querySelectorAll("li:not(.pt-group,.pt-other)")];
  const panes = names.length === 2 ? [...names, "difference"] : [""];
  const chosen = new Map();  /* group or root -> index of each of its axes, -1 for all */
  const said = make("output", {class: "pt-said", "aria-live": "polite"});

  const axes = node => node.dataset.a ? JSON.parse(node.dataset.a) : [];
  const up = li => { const above = li.parentElement.closest("li,.pt-view"); return above; };
  function steps(li) {  /* nodes from the root to this one */
    const out = [];
    for (let node = li; ; node = up(node)) { out.unshift(node); if (node === root) return out; }
  }
  function nameOf(li) {
    return li.dataset.n !== undefined ? JSON.parse(li.dataset.n) : li.querySelector(":scope>b,:scope>details>summary>b").dataset.name
      ?? li.querySelector(":scope>b,:scope>details>summary>b").textContent;
  }
  const path = li => steps(li).slice(1).map(nameOf);
  function code(li) {
    let out = names[0], run = [];
    const flush = () => { if (run.length) out += "[" + run.map(n => JSON.stringify(n)).join(", ") + "]"; run = []; };
    for (const node of steps(li)) {
      if (node !== root) {
        if (node.dataset.c !== undefined) { flush(); out += JSON.parse(node.dataset.c); } else run.push(nameOf(node));
      }
      const picked = chosen.get(node);
      if (picked && picked.some(i => i >= 0)) {
        flush();
        while (picked.length && picked[picked.length - 1] < 0) picked.pop();
        const before = steps(node).slice(0, -1).reduce((n, s) => n + axes(s).length - (chosen.get(s) || []).filter(i => i >= 0).length, 0);
        out += "[" + [...Array(before).fill(":"), ...picked.map(i => i < 0 ? ":" : i)].join(", ") + "]";
      }
    }
    flush();
    return out;
  }
  const paths = leaves.map(path);

  function indices(li) {  /* the index of each axis that the leaf's records tell apart */
    const count = Number((li.dataset.i || "0").split(" ")[0]);
    if (!count) return [];
    const all = [];
    for (const node of steps(li)) axes(node).forEach(([, size, apart], k) => {
      if (apart) all.push([size, (chosen.get(node) || [])[k] ?? -1]);
    });
    return all.slice(-count);
  }
  function record(li, pane) {  /* statistics of the chosen indices; null for those of all */
    const at = indices(li), packed = (li.dataset.r || "").split(" ")[pane];
    if (!packed || !at.some(([, i]) => i >= 0)) return null;
    const place = at.reduce((sum, [size, i]) => sum * (size + 1) + i + 1, 0);
    const raw = bytes(packed).slice(place * RECORD, (place + 1) * RECORD), view = new DataView(raw.buffer);
    const [mean, spread, low, high] = [0, 4, 8, 12].map(k => view.getFloat32(k, true));
    const [zeros, nan, infinite] = [16, 20, 24].map(k => view.getUint32(k, true));
    const bars = [...raw.slice(28)].flatMap(b => [b & 15, b >> 4]);
    const seen = at.reduce((n, [size, i]) => i < 0 ? n * size : n, Number(li.dataset.i.split(" ")[1]));
    return {mean, spread, low, high, zeros, nan, infinite, seen, bars: low < high ? bars : []};
  }
  const brief = s => s.seen === s.nan + s.infinite ? "nothing finite" : s.seen === 1 ? number(s.mean)
    : number(s.mean) + " ± " + number(s.spread);
  const long = (s, sampled) => (Number.isNaN(s.low) ? "" : `min ${number(s.low)} · max ${number(s.high)} · `)
    + "zeros " + (sampled || !s.zeros ? percent(s.zeros / s.seen) : `${s.zeros} (${percent(s.zeros / s.seen)})`) + (sampled ? " · of a sample" : "");
  const marks = s => [[s.nan, "NaN"], [s.infinite, "infinite"]].filter(([n]) => n).map(([n, what]) => `⚠ ${n} ${what}`).join(" ");

  function bars(heights, kind) {
    const box = make("span", {class: kind, "aria-hidden": "true"});
    for (const h of heights) {
      const bar = make("span");
      bar.style.height = 12.5 * h + "%";
      box.append(bar);
    }
    return box;
  }
  const heights = text => [...text].map(c => BARS.indexOf(c)).filter(h => h >= 0);

  /* A row's text becomes cells of a grid when it first comes into sight. */
  function dress(li) {
    if (li.dataset.dressed || li.classList.contains("pt-other")) return;
    li.dataset.dressed = "1";
    const summary = li.querySelector(":scope>details>summary"), b = summary.querySelector("b");
    const text = b.nextSibling, cells = text.textContent.trim().split(" · ").map((c, i) => i ? c : c.replace(/^· /, ""));
    const group = li.classList.contains("pt-group"), kinds = group
      ? ["", "pt-dim", "pt-end", "pt-end pt-share"] : ["", "pt-dim", "pt-dim", "pt-end", "pt-end pt-share", "pt-mean", ...(names.length === 1 ? ["pt-spark"] : [])];
    const made = kinds.map((kind, i) => make("span", {class: kind}, cells[i] || ""));
    if (group) made[1].style.gridColumn = "span 2";
    const share = made[group ? 3 : 4];
    share.style.setProperty("--share", parseFloat(share.textContent.replace("<", "")) || 0);
    b.title = b.textContent;
    text.replaceWith(...made);
    summary.classList.add("pt-cells");
    const copy = make("button", {type: "button", class: "pt-copy", tabindex: "-1", "aria-label": "Copy the path of " + b.textContent}, "");
    copy.innerHTML = '<svg width="11" height="11" viewBox="0 0 11 11" fill="none" stroke="currentColor" aria-hidden="true"><path d="M3.5 3.5h7v7h-7zM7.5 3V.5h-7v7H3"/></svg>';
    li.prepend(copy);
    if (!group) {
      li.kept = {shape: cells[0], size: cells[3], mean: cells[5] || "", sampled: (cells[5] || "").includes("≈"), bars: heights(cells[6] || ""), texts: [...li.querySelectorAll(":scope>details>p")].map(p => p.textContent)};
      tell(li);
    } else addAxes(li, li.querySelector(":scope>details>ul"), summary);
  }
  function tell(li) {  /* the row and the body for the chosen indices */
    if (!li.kept) return;
    const summary = li.querySelector(":scope>details>summary"), kept = li.kept;
    const all = panes.map((_, i) => record(li, i)), s = all[0], given = all.filter(Boolean);
    const at = indices(li), picked = at.filter(([, i]) => i >= 0);
    const [shape, , , size] = summary.querySelectorAll(":scope>span");
    const dims = kept.shape.includes("→") || !picked.length ? null : JSON.parse(kept.shape), about = kept.sampled ? "≈ " : "";
    if (dims) {
      const left = [...at.flatMap(([, i], k) => i < 0 ? [dims[k]] : []), ...dims.slice(at.length)];
      shape.textContent = "[" + left.join(", ") + "]";
      size.textContent = left.reduce((a, n) => a * n, 1).toLocaleString("en");
    } else { shape.textContent = kept.shape; size.textContent = kept.size; }
    summary.querySelector(".pt-mean").textContent = s ? all.slice(0, names.length).filter(Boolean).map(r => about + brief(r)).join(" → ") : kept.mean;
    if (names.length === 1) summary.querySelector(".pt-spark").replaceChildren(bars(s ? s.bars : kept.bars, "pt-bars"));
    const loud = summary.querySelector("strong");
    if (li.dataset.i && loud) {
      kept.loud ??= loud.textContent;
      const now = given.length ? given.slice(0, names.length).map(marks).filter(Boolean).join(", ") : kept.loud;
      loud.textContent = now;
      loud.hidden = !now;
    }
    li.querySelectorAll(":scope>details>p").forEach((p, i) => {
      const found = panes.findIndex(pane => pane && kept.texts[i].startsWith(pane + ": ")), t = all[Math.max(0, found)];
      const mean = t && !Number.isNaN(t.mean) ? `mean ${number(t.mean)} · spread ${number(t.spread)} · ` : "";
      p.textContent = t ? (panes.length > 1 ? `${panes[found] ?? "both"}: ${mean}` : "") + long(t, kept.sampled) : kept.texts[i];
    });
    if (li.querySelector(":scope>details").open) body(li);
  }

  function color(scale, t) {
    const x = t * (scale.length - 1), i = Math.min(Math.floor(x), scale.length - 2), f = x - i;
    return scale[i].map((c, k) => c + f * (scale[i + 1][k] - c));
  }
  function heat([images, tall, wide, down, across, low, high, data], li, label) {
    const at = indices(li), total = at.reduce((n, [size]) => n * size, 1);
    let shown = [...Array(images).keys()];
    if (at.some(([, i]) => i >= 0)) {
      if (images % total) return "no heat map of one index";
      const each = images / total;
      shown = shown.filter(image => {
        let place = Math.floor(image / each);
        for (const [size, i] of [...at].reverse()) { if (i >= 0 && place % size !== i) return false; place = Math.floor(place / size); }
        return true;
      });
    }
    const columns = tall === 1 ? 1 : Math.min(shown.length, Math.ceil(Math.sqrt(shown.length * tall / wide))), gap = tall === 1 || shown.length === 1 ? 0 : 1;
    const rows = Math.ceil(shown.length / columns);
    const canvas = make("canvas", {role: "img", width: columns * (wide + gap) - gap, height: rows * (tall + gap) - gap});
    const pen = canvas.getContext("2d"), pixels = bytes(data), scale = low < 0 && high > 0 ? DIVERGING : SEQUENTIAL;
    shown.forEach((image, k) => {
      const made = pen.createImageData(wide, tall);
      for (let j = 0; j < tall * wide; j++) {
        const step = pixels[image * tall * wide + j], rgb = step === 255 ? BROKEN : color(scale, step / 254);
        made.data.set([...rgb, 255], 4 * j);
      }
      pen.putImageData(made, (k % columns) * (wide + gap), Math.floor(k / columns) * (tall + gap));
    });
    const zoom = Math.max(1, Math.min(16, Math.floor((panes.length > 1 ? 180 : 260) / Math.max(canvas.width, canvas.height))));
    canvas.style.width = Math.max(zoom * canvas.width, 24) + "px";
    canvas.style.height = Math.max(zoom * canvas.height, 10) + "px";
    const words = `${label ? label + ": " : ""}${shown.length > 1 && tall > 1 ? shown.length + " images, " : ""}from ${number(low)} to ${number(high)}`
      + (down * across > 1 ? `, a cell is the mean of up to ${down} × ${across} entries` : "") + (shown.length && pixels.includes(255) ? ", not finite in magenta" : "");
    canvas.setAttribute("aria-label", "Heat map, " + words);
    return make("figure", {}, canvas, make("figcaption", {}, words));
  }
  function body(li) {
    const details = li.querySelector(":scope>details");
    details.querySelector(":scope>.pt-body")?.remove();
    const box = make("div", {class: "pt-body"});
    const text = code(li);
    box.append(make("div", {}, make("button", {type: "button", class: "pt-code", "aria-label": "Copy the path " + text, title: "Copy the path"}, text)));
    const s = record(li, 0), shape = s ? s.bars : li.kept.bars;
    if (shape.length) box.append(make("figure", {}, bars(shape, "pt-bars pt-hist"),
      make("figcaption", {}, `${panes[0] ? panes[0] + ": " : ""}histogram from min to max${li.kept.sampled ? " of a sample" : ""}`)));
    JSON.parse(li.dataset.p || "[]").forEach((p, i) => { if (p) box.append(heat(p, li, panes[i])); });
    details.append(box);
  }

  function inWords(picked) {  /* "task 3", or as one writes an index where axes have no names */
    const places = picked.map(([name]) => /^axis \d+$/.test(name) ? Number(name.slice(5)) : -1);
    if (!picked.length || places.includes(-1)) return picked.map(([name, i]) => `${name} ${i}`).join(", ");
    const out = Array(Math.max(...places) + 1).fill(":");
    picked.forEach(([, i], k) => { out[places[k]] = i; });
    return out.join(", ");
  }
  function addAxes(node, before, summary) {
    const given = axes(node);
    if (!given.length) return;
    const box = make("div", {class: "pt-axes"}), picked = given.map(() => -1), b = summary?.querySelector("b");
    if (b) b.dataset.name = b.textContent;
    chosen.set(node, picked);
    given.forEach(([name, size, apart], k) => {
      if (!apart) { box.append(make("span", {}, `${name}: ${size} (too many for an index)`)); return; }
      const select = make("select", {"aria-label": `Index of ${name}${b ? " of " + b.dataset.name : ""}`}, make("option", {value: -1}, "all " + size));
      for (let i = 0; i < size; i++) select.append(make("option", {value: i}, String(i)));
      select.addEventListener("change", () => {
        const now = chosen.get(node);
        while (now.length < given.length) now.push(-1);
        now[k] = Number(select.value);
        const text = inWords(given.map(([n], j) => [n, now[j]]).filter(([, i]) => i >= 0));
        if (b) b.textContent = b.dataset.name + (text ? `[${text}]` : "");
        for (const li of node.querySelectorAll("li[data-dressed]")) tell(li);
        said.textContent = `${b ? b.textContent : names[0] + (text ? `[${text}]` : "")}`;
      });
      box.append(make("label", {}, name + " ", select));
    });
    before.before(box);
  }

  function copy(li) {
    const text = code(li), done = ok => { said.textContent = (ok ? "Copied " : "Not copied, select it: ") + text; };
    const old = () => {
      const area = make("textarea", {style: "position:fixed;opacity:0"}), focus = document.activeElement;
      area.value = text;
      root.append(area);
      area.select();
      const ok = document.execCommand("copy");
      area.remove();
      focus?.focus();
      done(ok);
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => done(true), old); else old();
  }

  function opened(details) {
    const li = details.parentElement;
    if (li.classList.contains("pt-group")) { if (details.open) for (const child of details.querySelector(":scope>ul").children) dress(child); }
    else if (details.open) { dress(li); body(li); }
  }

  /* The box on top: filter, and what differs. */
  const filter = make("input", {type: "search", placeholder: "policy.**", "aria-label": `Filter ${names[0]} by a pattern such as policy.** or **.weight`});
  const count = make("output", {class: "pt-said", "aria-live": "polite"});
  const bar = make("div", {class: "pt-bar"}, make("label", {}, "Filter ", filter), count);
  const only = make("input", {type: "checkbox"});
  if (names.length === 2) bar.append(make("label", {}, only, " only what differs"));
  for (const [text, open] of [["Open all", true], ["Close all", false]]) {
    const button = make("button", {type: "button"}, text);
    button.addEventListener("click", () => {
      for (const d of top.querySelectorAll(".pt-group:not([hidden])>details")) d.open = open;
      if (!open) for (const d of top.querySelectorAll("details[open]")) d.open = false;
    });
    bar.append(button);
  }
  bar.append(said);
  let before = null;  /* which sub-trees were open before the first filter */
  function apply() {
    const text = filter.value.trim(), [pattern, exact] = parse(text), groups = [...top.querySelectorAll(".pt-group")];
    const active = text !== "" || only.checked;
    let found = 0;
    const kept = new Set();
    leaves.forEach((li, i) => {
      const ok = (text === "" || matches(pattern, paths[i], exact)) && !(only.checked && "s" in li.dataset);
      li.hidden = !ok;
      if (ok) { found++; if (active) for (let node = up(li); node !== root && !kept.has(node); node = up(node)) kept.add(node); }
    });
    for (const li of top.querySelectorAll(".pt-other")) li.hidden = active;
    if (active && !before) before = new Map(groups.map(g => [g, g.firstElementChild.matches("details") ? g.firstElementChild.open : g.querySelector(":scope>details").open]));
    for (const g of groups) {
      g.hidden = active && !kept.has(g);
      const details = g.querySelector(":scope>details");
      if (!active && before) details.open = before.get(g);
      else if (active && found <= 300 && kept.has(g)) details.open = true;
    }
    if (!active) before = null;
    count.textContent = active ? `${found.toLocaleString("en")} of ${leaves.length.toLocaleString("en")} leaves match` : "";
    filter.setAttribute("aria-invalid", String(active && !found));
  }
  filter.addEventListener("input", apply);
  only.addEventListener("change", apply);
  top.before(bar);
  top.dataset.cells = "";
  const heads = ["", "name", "shape", "dtype", "device", "size", "share", "mean ± spread", names.length === 2 ? "change" : "histogram"];
  const two = names.length === 2 ? " pt-two" : "";
  top.className += two;
  top.before(make("div", {class: "pt-heads" + two, "aria-hidden": "true"}, make("div", {class: "pt-cells"}, ...heads.map((text, i) =>
    make("span", {class: i === 5 || i === 6 ? "pt-end" : "", title: i === 7 ? "spread: standard deviation" : ""}, text)))));
  addAxes(root, top, null);

  root.addEventListener("toggle", event => opened(event.target), true);
  root.addEventListener("click", event => {
    const button = event.target.closest(".pt-copy,.pt-code");
    if (button) copy(button.closest("li"));
  });
  root.addEventListener("keydown", event => {
    event.stopPropagation();
    if (event.target === filter && event.key === "Escape") { filter.value = ""; apply(); }
    const summary = event.target.closest("summary");
    if (!summary || event.ctrlKey || event.metaKey || event.altKey) return;
    const details = summary.parentElement, li = details.parentElement, move = event.key;
    if (move === "ArrowDown" || move === "ArrowUp") {
      const all = [...top.querySelectorAll("summary")].filter(s => s.offsetParent !== null);
      all[all.indexOf(summary) + (move === "ArrowDown" ? 1 : -1)]?.focus();
    } else if (move === "ArrowRight") details.open = true;
    else if (move === "ArrowLeft") { if (details.open) details.open = false; else up(li).querySelector(":scope>details>summary")?.focus(); }
    else if (move === "c") copy(li);
    else return;
    event.preventDefault();
  });
  for (const child of top.children) dress(child);
  for (const details of top.querySelectorAll("details[open]")) opened(details);
}
const here = document.currentScript?.closest(".pt-view");
for (const root of here ? [here] : document.querySelectorAll(".pt-view")) start(root);
})();
