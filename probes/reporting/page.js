"use strict";
// The table of items and the view of one item. Texts of items only ever become text nodes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const nItems = data.id.length, nLayers = data.layers.length, nLabels = data.labels.length;
  const PAGE = 200;

  const make = (tag, text, className) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  };
  const draw = (tag, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const number = (value) => (value === null ? "–" : value.toFixed(2));

  // Shares are little-endian 16-bit steps.
  const unpack = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const probs = unpack(data.probs), shares = unpack(data.shares);
  const row = (view, start) => Array.from({length: nLabels}, (_, k) => view.getUint16(2 * (start + k), true) / data.steps);
  const probsOf = (item, layer) => row(probs, (item * nLayers + layer) * nLabels);
  const expected = (p) => {
    const total = p.reduce((sum, x) => sum + x, 0);
    return p.reduce((sum, x, k) => sum + x * data.values[k], 0) / total;
  };

  // ---- table ----
  const used = (name) => new Set(data[name]).size > 1 || (name !== "state" && data[name].some((x) => x));
  const columns = [
    {key: "id", head: "item", text: true},
    {key: "criterion", head: "criterion", text: true, shown: new Set(data.criterion).size > 1},
    {key: "group", head: "group", text: true, shown: used("group")},
    {key: "human", head: "raters' mean", shown: data.human.some((x) => x !== null)},
    {key: "final", head: "last layer", shown: data.final.some((x) => x !== null)},
    {key: "score", head: data.judge || "judge", shown: data.score.some((x) => x !== null)},
    {key: "off", head: "disagreement", shown: data.off.some((x) => x !== null)},
    {key: "state", head: "state", text: true, shown: used("state")},
  ].filter((column) => column.shown !== false);
  const collator = new Intl.Collator("en", {numeric: true});
  const rank = Object.fromEntries(columns.filter((column) => column.text).map(({key}) => {
    const names = [...new Set(data[key])].sort(collator.compare);
    const place = new Map(names.map((name, k) => [name, k]));
    return [key, data[key].map((name) => place.get(name))];
  }));

  let sort = columns.some((column) => column.key === "off") ? {key: "off", down: true} : {key: "", down: false};
  let order = [], shown = 0, current = 0;

  const hay = data.fields.map((pairs, i) =>
    [data.id[i], data.criterion[i], data.group[i], data.system[i], data.state[i],
      ...pairs.map(([, text]) => data.texts[text])].join("\n").toLowerCase());

  const arrange = () => {
    const needle = at("filter").value.trim().toLowerCase();
    const criterion = at("criterion").value;
    order = [];
    for (let i = 0; i < nItems; i++) {
      if (needle && !hay[i].includes(needle)) continue;
      if (criterion && data.criterion[i] !== JSON.parse(criterion)) continue;
      order.push(i);
    }
    const by = rank[sort.key] || data[sort.key];
    if (by) {
      order.sort((a, b) => {
        if (by[a] === null || by[b] === null) return (by[a] === null) - (by[b] === null) || a - b;
        return (sort.down ? by[b] - by[a] : by[a] - by[b]) || a - b;
      });
    }
    shown = 0;
    at("table").tBodies[0].replaceChildren();
    more();
  };

  const more = () => {
    const body = at("table").tBodies[0];
    const until = Math.min(order.length, shown + PAGE);
    for (; shown < until; shown++) {
      const item = order[shown];
      const tr = make("tr");
      tr.tabIndex = shown ? -1 : 0;
      tr.dataset.item = item;
      tr.setAttribute("aria-rowindex", shown + 2);
      columns.forEach((column, c) => {
        const value = data[column.key][item];
        const cell = make(c ? "td" : "th", column.text ? value : number(value), column.text ? "" : "number");
        if (!c) cell.scope = "row";
        tr.append(cell);
      });
      body.append(tr);
    }
    at("table").setAttribute("aria-rowcount", order.length + 1);
    at("count").textContent =
      `${order.length.toLocaleString("en")} of ${nItems.toLocaleString("en")} items match` +
      (shown < order.length ? `, the first ${shown.toLocaleString("en")} shown.` : ".");
    at("more").hidden = shown >= order.length;
    at("more").textContent = `Show ${Math.min(PAGE, order.length - shown)} more`;
  };

  const focusRow = (place) => {
    while (place >= shown && shown < order.length) more();
    const rows = at("table").tBodies[0].rows;
    const tr = rows[Math.max(0, Math.min(place, rows.length - 1))];
    if (!tr) return;
    for (const other of at("table").tBodies[0].querySelectorAll("tr[tabindex='0']")) other.tabIndex = -1;
    tr.tabIndex = 0;
    tr.focus();
  };

  const head = make("tr");
  for (const column of columns) {
    const th = make("th", undefined, column.text ? "" : "number");
    th.scope = "col";
    const button = make("button", column.head);
    button.type = "button";
    button.addEventListener("click", () => {
      // A first look at numbers wants the largest, one at names the first.
      sort = {key: column.key, down: sort.key === column.key ? !sort.down : !column.text};
      mark();
      arrange();
    });
    th.append(button);
    head.append(th);
  }
  const mark = () => columns.forEach((column, c) => {
    const th = head.cells[c];
    if (column.key === sort.key) th.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
  });
  at("table").tHead.append(head);
  mark();

  const body = at("table").tBodies[0];
  body.addEventListener("click", (event) => {
    const tr = event.target.closest("tr");
    if (tr) open(tr.sectionRowIndex);
  });
  body.addEventListener("keydown", (event) => {
    const tr = event.target.closest("tr");
    if (!tr || event.ctrlKey || event.metaKey || event.altKey) return;
    const place = tr.sectionRowIndex;
    const to = {ArrowDown: place + 1, ArrowUp: place - 1, PageDown: place + 15, PageUp: place - 15, Home: 0,
      End: order.length - 1}[event.key];
    if (to !== undefined) focusRow(Math.max(0, Math.min(to, order.length - 1)));
    else if (event.key === "Enter" || event.key === " ") open(place);
    else return;
    event.preventDefault();
  });
  at("filter").addEventListener("input", arrange);
  at("criterion").addEventListener("change", arrange);
  at("more").addEventListener("click", () => {
    const place = shown;
    more();
    focusRow(place);
  });
  const criteria = [...new Set(data.criterion)];
  const choice = (text, value) => {
    const option = make("option", text);
    option.value = value;
    at("criterion").append(option);
  };
  choice("all", "");
  if (criteria.length > 1) for (const name of criteria) choice(name || "(no criterion)", JSON.stringify(name));
  at("of-criterion").hidden = criteria.length < 2;

  // ---- one item ----
  const dialog = at("item");
  let layer = nLayers - 1;

  const open = (place) => {
    current = place;
    show();
    if (!dialog.open) dialog.showModal();
    at("name").focus();
    dialog.scrollTop = 0;
  };
  const step = (by) => {
    const to = current + by;
    if (to >= 0 && to < order.length) open(to);
  };
  const show = () => {
    const item = order[current];
    at("name").textContent = data.id[item];
    at("place").textContent = `${(current + 1).toLocaleString("en")} of ${order.length.toLocaleString("en")}`;
    at("previous").disabled = current === 0;
    at("next").disabled = current === order.length - 1;
    showScores(item);
    showTexts(item);
    at("layers").hidden = !data.read[item];
    if (data.read[item]) showLayers(item);
  };

  const showScores = (item) => {
    const list = at("scores");
    list.replaceChildren();
    const add = (name, value) => {
      if (value === "") return;
      list.append(make("dt", name), make("dd", value, "own"));
    };
    const raters = data.raters[item].filter((x) => x !== null);
    for (const name of ["criterion", "group", "system", "state"]) add(name, data[name][item]);
    add("raters' mean", number(data.human[item]));
    const [low, high] = data.human_range;
    add(`raters (from ${low} to ${high})`, raters.length ? raters.map((x) => String(+x.toFixed(4))).join(", ") : "none");
    add("last layer", number(data.final[item]));
    if (data.judge) add(data.judge, number(data.score[item]));
    add("disagreement", number(data.off[item]));
  };

  const words = (numbers, own) => {
    const block = make("div", undefined, "words");
    for (const n of numbers) {
      block.append(own && own.has(n) ? make("span", data.texts[n], "itself") : data.texts[n]);
      if (n in data.lost) {
        block.append(make("em", ` [${data.lost[n].toLocaleString("en")} characters left out here; the run has them]`));
      }
    }
    return block;
  };
  const showTexts = (item) => {
    const box = at("texts");
    box.replaceChildren();
    const own = new Set(data.fields[item].map(([, text]) => text));
    if (data.turns) {
      box.append(make("h3", "Prompt"));
      const turns = data.turns[item];
      // Few-shot examples are the same for all items: folded away.
      const last = turns.map(([role]) => role).lastIndexOf("user");
      const before = turns.slice(0, Math.max(0, last));
      const part = (into, turn) => into.append(make("p", turn[0], "role"), words(turn[1], own));
      if (before.length) {
        const folded = make("details");
        folded.append(make("summary", `${before.length} earlier turns (instructions, examples)`));
        for (const turn of before) part(folded, turn);
        box.append(folded);
      }
      for (const turn of turns.slice(Math.max(0, last))) part(box, turn);
    }
    if (data.answers) {
      box.append(make("h3", "What the judge wrote"));
      for (const n of data.answers[item]) box.append(words([n]));
    }
    box.append(make("h3", "Fields of the item"));
    for (const [name, text] of data.fields[item]) {
      box.append(make("p", data.texts[name], "role own"), words([text]));
    }
  };

  const WIDTH = 360, LEFT = 30, RIGHT = 12;
  const showLayers = (item) => {
    const scores = Array.from({length: nLayers}, (_, l) => expected(probsOf(item, l)));
    const low = data.values[0], high = data.values[nLabels - 1], height = 190, top = 12, bottom = 160;
    const x = (l) => LEFT + (nLayers > 1 ? (l / (nLayers - 1)) * (WIDTH - LEFT - RIGHT) : 0);
    const y = (v) => bottom - ((v - low) / (high - low)) * (bottom - top);
    const svg = draw("svg", {viewBox: `0 0 ${WIDTH} ${height}`, role: "img"});
    svg.setAttribute("aria-label", "Expected score by layer: " +
      scores.map((s, l) => `${data.layers[l]} ${number(s)}`).join(", "));
    const every = Math.ceil(nLabels / 7);
    data.values.forEach((v, k) => {
      if (k % every && k !== nLabels - 1) return;
      svg.append(draw("line", {x1: LEFT, x2: WIDTH - RIGHT, y1: y(v), y2: y(v), class: "grid"}));
      svg.append(draw("text", {x: LEFT - 6, y: y(v) + 4, "text-anchor": "end"}, short(data.labels[k], 4)));
    });
    const tick = Math.max(1, Math.ceil((nLayers - 1) / 6));
    for (let l = 0; l < nLayers; l++) {
      if ((l % tick || nLayers - 1 - l < tick * 0.7) && l !== nLayers - 1) continue;
      const anchor = l === nLayers - 1 ? "end" : l ? "middle" : "start";
      svg.append(draw("text", {x: x(l), y: bottom + 18, "text-anchor": anchor}, data.layers[l]));
    }
    if (data.human[item] !== null) {
      const h = y(data.human[item]);
      svg.append(draw("line", {x1: LEFT, x2: WIDTH - RIGHT, y1: h, y2: h, class: "raters"}));
      svg.append(draw("text", {x: WIDTH - RIGHT, y: h < 30 ? h + 13 : h - 5, "text-anchor": "end", class: "raters"},
        `raters ${number(data.human[item])}`));
    }
    svg.append(draw("line", {x1: x(layer), x2: x(layer), y1: top, y2: bottom, class: "here"}));
    svg.append(draw("polyline", {points: scores.map((s, l) => `${x(l).toFixed(1)},${y(s).toFixed(1)}`).join(" "),
      class: "curve"}));
    svg.append(draw("circle", {cx: x(layer), cy: y(scores[layer]), r: 4.5, class: "dot"}));
    svg.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      const place = ((event.clientX - box.left) / box.width) * WIDTH;
      choose(Math.round(((place - LEFT) / (WIDTH - LEFT - RIGHT)) * (nLayers - 1)));
    });
    at("line").replaceChildren(svg);
    at("layer").max = nLayers - 1;
    at("layer").value = layer;
    at("layer").setAttribute("aria-valuetext", `layer ${data.layers[layer]}, score ${number(scores[layer])}`);
    at("at-layer").textContent = `Layer ${data.layers[layer]} (${data.lens} lens): score ${number(scores[layer])}`;
    showBars(item);
  };

  const showBars = (item) => {
    const judge = probsOf(item, layer), raters = data.human[item] === null ? null : row(shares, item * nLabels);
    const height = 170, top = 18, bottom = 145, step = (WIDTH - LEFT - RIGHT) / nLabels;
    const svg = draw("svg", {viewBox: `0 0 ${WIDTH} ${height}`, role: "img"});
    svg.setAttribute("aria-label", "Probability of each label: " + data.labels.map((label, k) =>
      `${label} ${number(judge[k])}` + (raters ? `, raters ${number(raters[k])}` : "")).join("; "));
    const top1 = Math.max(...judge, ...(raters || [0]));
    const bar = (x, wide, share, name) => {
      const tall = (share / top1) * (bottom - top);
      svg.append(draw("rect", {x, y: bottom - tall, width: wide, height: tall, class: name}));
    };
    data.labels.forEach((label, k) => {
      const x = LEFT + k * step, wide = step * (raters ? 0.36 : 0.6);
      bar(x + step * 0.12, wide, judge[k], "judge");
      if (raters) bar(x + step * 0.12 + wide, wide, raters[k], "human");
      if (nLabels <= 7) {
        const tall = (judge[k] / top1) * (bottom - top);
        svg.append(draw("text", {x: x + step * 0.12 + wide / 2, y: bottom - tall - 4, "text-anchor": "middle",
          class: "value"}, number(judge[k])));
      }
      svg.append(draw("text", {x: x + step / 2, y: bottom + 16, "text-anchor": "middle"},
        short(label, Math.max(2, Math.floor(step / 7)))));
    });
    svg.append(draw("line", {x1: LEFT, x2: WIDTH - RIGHT, y1: bottom, y2: bottom, class: "grid"}));
    at("bars").replaceChildren(svg);
  };
  const short = (text, most) => {
    const letters = Array.from(text);
    return letters.length > most ? letters.slice(0, Math.max(1, most - 1)).join("") + "…" : text;
  };
  const choose = (l) => {
    layer = Math.max(0, Math.min(nLayers - 1, l));
    showLayers(order[current]);
  };

  at("layer").addEventListener("input", () => choose(Number(at("layer").value)));
  at("previous").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  at("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => focusRow(current));
  dialog.addEventListener("keydown", (event) => {
    // On the slider the arrows choose the layer.
    if (event.target === at("layer") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else return;
    event.preventDefault();
  });

  // ---- light and dark ----
  const root = document.documentElement;
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => { at("theme").textContent = dark() ? "Light" : "Dark"; };
  at("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    name();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();

  at("theme").hidden = false;
  at("explorer").hidden = false;
  arrange();
})();
